//! `settings.json`: what cpw puts in it takes out again to the byte, whatever else stands there.

use cpw::model::settings::{Form, install, uninstall, wired};
use serde_json::Value;

/// Any bytes as a settings file.
pub fn check(bytes: &[u8]) {
    for form in [Form::Shared, Form::Exec("/opt/my tools/\"x\"/cpw".into())] {
        round(bytes, &form);
    }
}

fn round(before: &[u8], form: &Form) {
    let clean = uninstall(before);
    let Ok(after) = install(Some(before), form) else { return };
    let show = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert_eq!(show(&install(Some(&after), form).expect("what was put in can be read")), show(&after));
    assert!(wired(&after).expect("what was put in can be read").len() >= 5, "{}", show(&after));
    let back = uninstall(&after).expect("what was put in can be taken out");
    if let Some(back) = &back {
        assert_eq!(wired(back).expect("what was taken out of can be read"), []);
        assert_eq!(show(&uninstall(back).expect("it can be read").unwrap_or_default()), show(back));
    }
    // Where nothing of ours was before, every byte is as it was.
    if clean.is_ok_and(|clean| clean.as_deref() == Some(before)) {
        assert_eq!(back.as_deref().map(show), Some(show(before)), "from {}", show(&after));
    }
    if let (Ok(Value::Object(mut a)), Ok(Value::Object(mut b))) =
        (serde_json::from_slice::<Value>(&after), serde_json::from_slice::<Value>(before))
    {
        a.remove("hooks");
        b.remove("hooks");
        assert_eq!(a, b, "what is not ours has changed");
    } else {
        assert!(serde_json::from_slice::<Value>(before).is_err(), "JSON no longer: {}", show(&after));
    }
}
