//! A stand-in for the Messages API on loopback: answers the client with scripted turns and records what the client sent,
//! so that a test can assert what the model was shown and how often it was asked. It is not a model of the API's rules:
//! it accepts every request, counts no tokens and knows no errors but those of the script.
//!
//! Only requests of the *main conversation* take a turn from the script. Another client that runs beside it, such as a
//! worker's, gets a conversation of its own, known by words of its first prompt. What else a client sends (titles,
//! probes, subagents, summaries) is recorded apart and answered with a harmless text.

use std::collections::VecDeque;
use std::io::{BufReader, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::http::{begin_events, end_events, read_request, respond, respond_with, send_event};

pub(crate) use super::http::Request;

/// What the stand-in says when the script is used up: a test sees it in the final text and in the number of requests.
pub(crate) const UNSCRIPTED: &str = "UNSCRIPTED";

/// The number that the first scripted request of a subagent has for [`tool_use_id`].
pub(crate) const FIRST_OF_SUBAGENTS: usize = 50;

/// What the stand-in says when a closure of the script has panicked.
const FAILED: &str = "THE SCRIPT FAILED";

/// One answer of the model: texts and tool uses in order, sent after a delay.
#[derive(Debug, Clone, Default)]
pub(crate) struct Turn {
    blocks: Vec<Block>,
    delay: Duration,
    /// Tokens that it is said to have cost beyond the ten of every turn.
    tokens: u64,
    refusal: Option<Refusal>,
}

/// An error in place of an answer.
#[derive(Debug, Clone)]
struct Refusal {
    status: &'static str,
    kind: &'static str,
    headers: Vec<(&'static str, String)>,
}

#[derive(Debug, Clone)]
enum Block {
    Text(String),
    Tool { name: String, input: Value },
}

impl Turn {
    /// A text; alone it ends the turn.
    pub(crate) fn text(text: impl Into<String>) -> Self {
        Self { blocks: vec![Block::Text(text.into())], ..Self::default() }
    }

    /// One tool use.
    pub(crate) fn tool(name: &str, input: Value) -> Self {
        Self::default().and_tool(name, input)
    }

    /// The same turn with one more tool use, which the client runs in parallel with the others where it can.
    pub(crate) fn and_tool(mut self, name: &str, input: Value) -> Self {
        self.blocks.push(Block::Tool { name: name.to_owned(), input });
        self
    }

    /// A status other than 200, with the API's name for that error. The client is asked not to try again by itself.
    pub(crate) fn refused(status: &'static str, kind: &'static str) -> Self {
        let headers = vec![("x-should-retry", "false".to_owned())];
        Self { refusal: Some(Refusal { status, kind, headers }), ..Self::default() }
    }

    /// The same refusal with one more header.
    pub(crate) fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        let refusal = self.refusal.as_mut().expect("only a refusal has headers of its own");
        refusal.headers.push((name, value.into()));
        self
    }

    /// The same turn, said to have cost so many tokens more.
    pub(crate) fn costing(mut self, tokens: u64) -> Self {
        self.tokens = tokens;
        self
    }

    /// The same turn, sent only this long after its request.
    pub(crate) fn after(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }
}

type Ask = Box<dyn FnOnce(&Request) -> Turn + Send>;

enum Step {
    Say(Turn),
    Ask(Ask),
}

/// The turns of the main conversation, in order.
#[derive(Default)]
pub(crate) struct Script(VecDeque<Step>);

impl Script {
    /// A script with no turns yet: every request is unscripted.
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Adds a fixed turn.
    pub(crate) fn then(mut self, turn: Turn) -> Self {
        self.0.push_back(Step::Say(turn));
        self
    }

    /// Adds a turn that is decided by the request it answers. The closure may wait, for example for a file: the client
    /// waits as for a slow model.
    pub(crate) fn ask(mut self, decide: impl FnOnce(&Request) -> Turn + Send + 'static) -> Self {
        self.0.push_back(Step::Ask(Box::new(decide)));
        self
    }
}

/// The id of the `block`-th tool use (from 0) in the answer to the `request`-th main request (from 0).
pub(crate) fn tool_use_id(request: usize, block: usize) -> String {
    format!("toolu_{request:02}_{block:02}")
}

impl Request {
    /// Every text that the model was shown in the messages, oldest first: user and system texts, its own earlier texts
    /// and the texts of tool results. The system prompt is not part of it.
    pub(crate) fn texts_shown(&self) -> Vec<String> {
        let mut texts = Vec::new();
        self.messages().iter().for_each(|message| collect_texts(&message["content"], &mut texts));
        texts
    }

    /// Like [`Self::texts_shown`], only what came since the model's last answer: what this request newly tells it.
    pub(crate) fn news(&self) -> Vec<String> {
        let messages = self.messages();
        let from = messages.iter().rposition(|m| m["role"] == "assistant").map_or(0, |last| last + 1);
        let mut texts = Vec::new();
        messages[from..].iter().for_each(|message| collect_texts(&message["content"], &mut texts));
        texts
    }

    /// How often `needle` occurs in all the texts shown.
    pub(crate) fn count(&self, needle: &str) -> usize {
        self.texts_shown().iter().map(|text| text.matches(needle).count()).sum()
    }

    /// The text of a tool's result, however the client wrapped it, if this request carries it.
    pub(crate) fn tool_result(&self, tool_use_id: &str) -> Option<String> {
        let mut texts = Vec::new();
        collect_texts(&self.tool_result_block(tool_use_id)?["content"], &mut texts);
        Some(texts.join("\n"))
    }

    /// Whether a tool's result is marked as an error; none if this request does not carry it.
    pub(crate) fn tool_failed(&self, tool_use_id: &str) -> Option<bool> {
        self.tool_result_block(tool_use_id).map(|block| block["is_error"] == true)
    }

    fn tool_result_block(&self, tool_use_id: &str) -> Option<&Value> {
        self.messages()
            .iter()
            .filter_map(|message| message["content"].as_array())
            .flatten()
            .find(|block| block["type"] == "tool_result" && block["tool_use_id"] == tool_use_id)
    }

    fn messages(&self) -> &[Value] {
        self.body["messages"].as_array().map_or(&[], Vec::as_slice)
    }

    /// Whether the session itself asks: not a subagent, not a probe, not the client's own housekeeping.
    fn is_conversation(&self) -> bool {
        self.method == "POST"
            && self.path.split('?').next() == Some("/v1/messages")
            // The client's requests without tools are titles and the like; a search by the API has that one tool.
            && self.body["tools"].as_array().is_some_and(|tools| tools.iter().any(|tool| tool["name"] == "Read"))
            && !self.headers.contains_key("x-claude-code-agent-id")
            && !self.asks_for_summary()
    }

    /// Whether the client asks for a summary in place of the conversation. It does so with the session's own tools and
    /// messages; only the words of the last message tell.
    fn asks_for_summary(&self) -> bool {
        self.news().iter().any(|text| text.starts_with("CRITICAL: Respond with TEXT ONLY. Do NOT call any tools."))
    }

    /// Whether `words` stand in what came before the model's first answer.
    fn begins_with(&self, words: &str) -> bool {
        let mut texts = Vec::new();
        let first = self.messages().iter().take_while(|message| message["role"] != "assistant");
        first.for_each(|message| collect_texts(&message["content"], &mut texts));
        texts.iter().any(|text| text.contains(words))
    }
}

fn collect_texts(content: &Value, texts: &mut Vec<String>) {
    match content {
        Value::String(text) => texts.push(text.clone()),
        Value::Array(blocks) => {
            for block in blocks {
                match block["type"].as_str() {
                    Some("text") => texts.extend(block["text"].as_str().map(str::to_owned)),
                    Some("tool_result") => collect_texts(&block["content"], texts),
                    _ => {}
                }
            }
        }
        _ => {}
    }
}

#[derive(Default)]
struct Conversation {
    script: VecDeque<Step>,
    requests: Vec<Request>,
}

#[derive(Default)]
struct State {
    main: Conversation,
    /// Beside the main one, by words of their first prompt.
    beside: Vec<(String, Conversation)>,
    /// What the subagents do, one after the other.
    subagents: Conversation,
    others: Vec<Request>,
    connections: Vec<TcpStream>,
    closing: bool,
    /// Whether a closure of a script has panicked; what it said is on stderr.
    failed: bool,
}

impl State {
    /// Files a request under its conversation and takes that conversation's next turn.
    fn file(&mut self, request: &Request) -> Filed {
        if !request.is_conversation() {
            self.others.push(request.clone());
            if request.headers.contains_key("x-claude-code-agent-id")
                && let Some(step) = self.subagents.script.pop_front()
            {
                self.subagents.requests.push(request.clone());
                return Filed::Turn { step: Some(step), index: FIRST_OF_SUBAGENTS + self.subagents.requests.len() - 1 };
            }
            return Filed::Other;
        }
        let beside = self.beside.iter_mut().find(|(words, _)| request.begins_with(words));
        let conversation = beside.map_or(&mut self.main, |(_, conversation)| conversation);
        conversation.requests.push(request.clone());
        Filed::Turn { step: conversation.script.pop_front(), index: conversation.requests.len() - 1 }
    }

    fn beside(&mut self, words: &str) -> Option<&mut Conversation> {
        self.beside.iter_mut().find(|(known, _)| known == words).map(|(_, conversation)| conversation)
    }
}

enum Filed {
    Turn { step: Option<Step>, index: usize },
    Other,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // A closure of a script that panicked must not hide what was recorded until then.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `ready` returns something, the deadline has passed or the stand-in closes.
    fn wait<T>(&self, limit: Duration, mut ready: impl FnMut(&State) -> Option<T>) -> Option<T> {
        let end = Instant::now() + limit;
        let mut state = self.state();
        loop {
            if let Some(value) = ready(&state) {
                return Some(value);
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() || state.closing {
                return None;
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// The running stand-in. Dropping it closes every connection and ends its threads; it fails the test if a closure of the
/// script has failed.
pub(crate) struct Api {
    address: SocketAddr,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

impl Api {
    /// Starts answering on a free port of loopback.
    pub(crate) fn start(script: Script) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port on loopback");
        let address = listener.local_addr().expect("the address just bound");
        let shared = Arc::new(Shared::default());
        shared.state().main.script = script.0;
        let acceptor = std::thread::spawn({
            let shared = Arc::clone(&shared);
            move || accept(&listener, &shared)
        });
        Self { address, shared, acceptor: Some(acceptor) }
    }

    /// For `ANTHROPIC_BASE_URL`.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Adds turns behind those not yet used, for the next prompt of an interactive session.
    pub(crate) fn continue_with(&self, script: Script) {
        self.shared.state().main.script.extend(script.0);
    }

    /// The requests of the main conversation so far.
    pub(crate) fn requests(&self) -> Vec<Request> {
        self.shared.state().main.requests.clone()
    }

    /// Gives the subagents turns of their own; without any left they are answered with a harmless text.
    pub(crate) fn subagents(&self, script: Script) {
        self.shared.state().subagents.script.extend(script.0);
    }

    /// Gives a conversation with `words` in its first prompt a script of its own, apart from the main one.
    pub(crate) fn beside(&self, words: &str, script: Script) {
        let conversation = Conversation { script: script.0, requests: Vec::new() };
        self.shared.state().beside.push((words.to_owned(), conversation));
    }

    /// The requests of that conversation so far.
    pub(crate) fn requests_beside(&self, words: &str) -> Vec<Request> {
        let mut state = self.shared.state();
        state.beside(words).unwrap_or_else(|| panic!("no conversation about {words:?}")).requests.clone()
    }

    /// Everything else that was asked: probes, titles, subagents.
    pub(crate) fn others(&self) -> Vec<Request> {
        self.shared.state().others.clone()
    }

    /// Turns of the script that no request has taken yet.
    pub(crate) fn unused(&self) -> usize {
        self.shared.state().main.script.len()
    }

    /// Waits until the main conversation has had `count` requests and returns them.
    pub(crate) fn wait_for_requests(&self, count: usize, limit: Duration) -> Vec<Request> {
        self.shared
            .wait(limit, |state| (state.main.requests.len() >= count).then(|| state.main.requests.clone()))
            .unwrap_or_else(|| panic!("{} of {count} requests within {limit:?}", self.requests().len()))
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("what the model was newly told, request by request:");
            for (index, request) in self.requests().iter().enumerate() {
                eprintln!("{index}: {:#?}", request.news());
            }
        }
        let connections = {
            let mut state = self.shared.state();
            state.closing = true;
            std::mem::take(&mut state.connections)
        };
        self.shared.changed.notify_all();
        for connection in connections {
            // Its peer may have closed it already.
            connection.shutdown(Shutdown::Both).ok();
        }
        // The acceptor sees `closing` when one more connection arrives.
        TcpStream::connect(self.address).ok();
        if let Some(acceptor) = self.acceptor.take() {
            acceptor.join().ok();
        }
        assert!(std::thread::panicking() || !self.shared.state().failed, "{FAILED}");
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    for connection in listener.incoming() {
        let Ok(connection) = connection else { continue };
        let mut state = shared.state();
        if state.closing {
            return;
        }
        let Ok(copy) = connection.try_clone() else { continue };
        state.connections.push(copy);
        drop(state);
        let shared = Arc::clone(shared);
        // Not joined: it ends when its socket is shut down, and holds nothing but memory.
        std::thread::spawn(move || {
            // An error means that the client has gone, as it does when a turn is interrupted.
            serve(&connection, &shared).ok();
        });
    }
}

/// Answers the requests of one connection until the client closes it.
fn serve(connection: &TcpStream, shared: &Shared) -> std::io::Result<()> {
    connection.set_nodelay(true)?;
    let mut reader = BufReader::new(connection);
    while let Some(request) = read_request(&mut reader)? {
        let mut out = connection;
        if request.method == "HEAD" || request.method == "GET" {
            let head = request.method == "HEAD";
            shared.state().others.push(request);
            respond(&mut out, "404 Not Found", &json!({"type": "error"}), head)?;
        } else if request.path.split('?').next() == Some("/v1/messages") {
            answer(&mut out, &request, shared)?;
        } else {
            shared.state().others.push(request);
            respond(&mut out, "200 OK", &json!({"input_tokens": 10}), false)?;
        }
    }
    Ok(())
}

fn answer(out: &mut impl Write, request: &Request, shared: &Shared) -> std::io::Result<()> {
    let filed = shared.state().file(request);
    shared.changed.notify_all();
    let (turn, index) = match filed {
        Filed::Turn { step: Some(Step::Say(turn)), index } => (turn, index),
        Filed::Turn { step: Some(Step::Ask(decide)), index } => {
            // A broken connection would make the client ask again and again: it gets an answer, and the test fails at
            // the end.
            let turn = catch_unwind(AssertUnwindSafe(|| decide(request))).unwrap_or_else(|_| {
                shared.state().failed = true;
                Turn::text(FAILED)
            });
            (turn, index)
        }
        Filed::Turn { step: None, index } => (Turn::text(UNSCRIPTED), index),
        Filed::Other if request.asks_for_summary() => (Turn::text("<summary>Nothing yet.</summary>"), 0),
        // The older client asks again with the next prompt until it has its title.
        Filed::Other if !request.body["output_config"]["format"].is_null() => (Turn::text(r#"{"title": "A test"}"#), 0),
        Filed::Other => (Turn::text("ok"), 0),
    };
    // Not a sleep: a stand-in that closes does not wait for its slow answers.
    shared.wait(turn.delay, |_| None::<()>);

    if let Some(Refusal { status, kind, headers }) = turn.refusal {
        let error = json!({"type": "error", "error": {"type": kind, "message": format!("{kind} on purpose")}});
        return respond_with(out, status, &headers, &error, false);
    }
    let content: Vec<Value> = turn
        .blocks
        .iter()
        .enumerate()
        .map(|(block, content)| match content {
            Block::Text(text) => json!({"type": "text", "text": text}),
            Block::Tool { name, input } => {
                json!({"type": "tool_use", "id": tool_use_id(index, block), "name": name, "input": input})
            }
        })
        .collect();
    let wants_tools = turn.blocks.iter().any(|block| matches!(block, Block::Tool { .. }));
    let stop_reason = if wants_tools { "tool_use" } else { "end_turn" };
    let mut message = json!({
        "id": format!("msg_{}", uuid::Uuid::new_v4().simple()),
        "type": "message",
        "role": "assistant",
        "model": request.body["model"],
        "content": [],
        "stop_reason": null,
        "stop_sequence": null,
        "usage": {"input_tokens": 10, "output_tokens": 1},
    });
    if request.body["stream"] == true {
        stream(out, &message, &content, stop_reason, 10 + turn.tokens)
    } else {
        message["content"] = content.into();
        message["stop_reason"] = stop_reason.into();
        respond(out, "200 OK", &message, false)
    }
}

fn stream(
    out: &mut impl Write,
    message: &Value,
    content: &[Value],
    stop_reason: &str,
    tokens: u64,
) -> std::io::Result<()> {
    begin_events(out)?;
    send_event(out, &json!({"type": "message_start", "message": message}))?;
    for (index, block) in content.iter().enumerate() {
        let mut start = block.clone();
        let delta = if block["type"] == "text" {
            start["text"] = "".into();
            json!({"type": "text_delta", "text": block["text"]})
        } else {
            start["input"] = json!({});
            json!({"type": "input_json_delta", "partial_json": block["input"].to_string()})
        };
        send_event(out, &json!({"type": "content_block_start", "index": index, "content_block": start}))?;
        send_event(out, &json!({"type": "content_block_delta", "index": index, "delta": delta}))?;
        send_event(out, &json!({"type": "content_block_stop", "index": index}))?;
    }
    let delta = json!({"stop_reason": stop_reason, "stop_sequence": null});
    send_event(out, &json!({"type": "message_delta", "delta": delta, "usage": {"output_tokens": tokens}}))?;
    send_event(out, &json!({"type": "message_stop"}))?;
    end_events(out)
}
