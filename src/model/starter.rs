//! The config that `cpw init` writes: one rule that is useful at once in any project, needs POSIX tools only and costs no
//! model tokens. A person replaces its script by their own linter or test.

/// The bytes of the starter `.claude/cpw.json`.
pub const STARTER: &str = include_str!("starter.json");

#[cfg(test)]
mod tests {
    use super::STARTER;
    use crate::model::config;

    #[test]
    fn the_starter_config_is_valid_and_short() {
        let config = config::check(STARTER.as_bytes()).unwrap_or_else(|p| panic!("{p:#?}"));
        assert_eq!(config.rules.len(), 1);
        let rule = &config.rules[0];
        assert_eq!(rule.prompt_matches("Analyze api.py, db.py and ui.py").len(), 1);
        assert_eq!(rule.min_files(), 2);
        assert!(rule.prompt_matches("the analyzer reviewed it").is_empty());
        assert!(STARTER.lines().count() < 40);
    }
}
