//! The embedded engine profiles, and what a profile refuses.

use super::*;
use crate::engine::rules::{ExpertWidths, GatherCost, GraphUnit, MemoryRule};

fn profiles() -> Vec<EngineProfile> {
    embedded().unwrap()
}

fn rules(text: &str) -> EngineRules {
    select(&profiles(), text, false).unwrap()
}

#[test]
fn every_embedded_profile_resolves_at_every_change() {
    for profile in profiles() {
        let versions = profile.versions_of_change();
        assert!(versions.contains(&profile.newest));
        for version in versions {
            let rules = profile.rules(version).unwrap();
            assert_eq!(rules.version, version);
            assert!(rules.sources.len() >= 9, "{} {version}", profile.name);
            assert!(rules.flags.contains_key(&Meaning::Model));
        }
    }
}

#[test]
fn profiles_survive_a_round_trip() {
    for profile in profiles() {
        let text = toml::to_string(&profile).unwrap();
        assert_eq!(EngineProfile::from_toml(&text, "again").unwrap(), profile);
    }
}

#[test]
fn the_rules_of_a_version_are_the_latest_before_it() {
    let gather = |text: &str| match rules(text).padding {
        PaddingRule::GatherCost(cost) => cost,
        other => panic!("{other:?}"),
    };
    let GatherCost {
        extend_forces_sum,
        tie_is_max,
        ..
    } = gather("sglang@0.5.9");
    assert!(extend_forces_sum && !tie_is_max);
    assert!(gather("sglang@0.5.10.post1").tie_is_max);
    assert!(!gather("sglang@0.4.9.post6").extend_forces_sum);
    assert_eq!(gather("sglang@0.5.22").custom_all_reduce_bytes, None);
    assert_eq!(gather("sglang").custom_all_reduce_bytes, Some(16 << 20));
    assert_eq!(rules("sglang@0.4.9.post3").padding, PaddingRule::SumOnly);
    assert_eq!(
        rules("sglang@0.4.9").graphs.unit,
        GraphUnit::RequestsOfAllRanks
    );
    assert_eq!(
        rules("sglang@0.4.9").geometry.expert,
        ExpertWidths::OneOrAll
    );
    for (version, fraction) in [("0.19.0", 0.9), ("0.20.0", 0.92), ("0.33.0", 0.92)] {
        let MemoryRule::Utilization { default, .. } = rules(&format!("vllm@{version}")).memory
        else {
            panic!("{version}");
        };
        assert_eq!(default, fraction, "{version}");
    }
}

#[test]
fn spellings_follow_the_version() {
    let spelling = |engine: &str, meaning| {
        rules(engine)
            .flags
            .get(&meaning)
            .map(|flag| (flag.flag.clone(), flag.with.clone()))
    };
    let with = vec!["--enable-dp-attention".to_owned()];
    assert_eq!(
        spelling("sglang@0.5.21", Meaning::AttentionDp),
        Some(("--dp-size".to_owned(), with))
    );
    assert_eq!(
        spelling("sglang@0.5.22", Meaning::AttentionDp),
        Some(("--attn-dp-size".to_owned(), vec![]))
    );
    assert_eq!(spelling("sglang@0.5.14", Meaning::Dcp), None);
    assert_eq!(
        spelling("sglang@0.5.13.post1", Meaning::GraphSizes),
        Some(("--cuda-graph-bs".to_owned(), vec![]))
    );
    assert_eq!(
        spelling("sglang@0.5.14", Meaning::GraphSizes),
        Some(("--cuda-graph-bs-decode".to_owned(), vec![]))
    );
}

#[test]
fn versions_out_of_range_are_refused_or_assumed() {
    let all = profiles();
    let error = select(&all, "sglang@0.6.0", false).unwrap_err();
    assert!(matches!(error, EngineError::OutOfRange { .. }));
    let text = error.to_string();
    assert!(
        text.contains("0.4.9 to 0.5.23") && text.contains("nearest is 0.5.23"),
        "{text}"
    );
    assert!(matches!(
        select(&all, "vllm@0.10.2", false),
        Err(EngineError::OutOfRange { .. })
    ));
    let assumed = select(&all, "sglang@0.6.0", true).unwrap();
    assert_eq!(assumed.assumed_for.as_deref(), Some("0.6.0"));
    assert_eq!(assumed.version.to_string(), "0.5.23");

    let nightly = select(&all, "sglang@nightly-dev-20260216", false).unwrap_err();
    assert!(nightly.to_string().contains("nightly"), "{nightly}");
    assert!(select(&all, "sglang@nightly-dev-20260216", true).is_ok());

    // A later patch of the newest minor release is planned by it.
    assert!(select(&all, "sglang@0.5.23.post1", false).is_ok());

    let unknown = select(&all, "sglnag", false).unwrap_err().to_string();
    assert!(
        unknown.contains("sglang, vllm, trtllm, builtin"),
        "{unknown}"
    );
}

#[test]
fn faults_of_a_profile_are_named() {
    let good = EMBEDDED[3].1;
    let fault = |text: &str| {
        EngineProfile::from_toml(text, "mine.toml")
            .unwrap_err()
            .to_string()
    };
    assert!(fault("name = ").contains("mine.toml"));
    assert!(
        fault(&good.replace("unit = \"requests_per_rank\"", "unit = \"cows\"")).contains("cows")
    );
    let late = good.replacen(
        "[[padding]]\nfrom = \"0.1.0\"",
        "[[padding]]\nfrom = \"0.2.0\"",
        1,
    );
    assert!(fault(&late).contains("[[padding]] must begin at or before version 0.1.0"));
    let backwards = good.replace("newest = \"0.1.0\"", "newest = \"0.0.9\"");
    assert!(fault(&backwards).contains("newer than"));
    let twice = good.replace(
        "model = [{",
        "model = [{ from = \"0.1.0\", flag = \"--m\", form = \"value\" }, {",
    );
    assert!(fault(&twice).contains("overlaps"));
    let bare = good.replace("flag = \"--model\"", "flag = \"\"");
    assert!(fault(&bare).contains("positional"));
}
