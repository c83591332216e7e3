//! The file: rendering it, and comparing the committed one with a fresh fit.

use std::fmt::Write as _;

use anyhow::{Context, Result};
use parplan_profiles::{GpuArchitecture, Overheads};
use serde::Deserialize;

/// Which runs the figures rest on.
pub(super) const SOURCE: &str =
    "measured serving runs of aiconfigurator-core 0.12.0 (InferenceX and NVIDIA)";

#[derive(Deserialize)]
struct File {
    overheads: Vec<Overheads>,
}

/// The entries of a file.
pub(super) fn parse(text: &str) -> Result<Vec<Overheads>> {
    Ok(toml::from_str::<File>(text)
        .context("reading the overheads that are there")?
        .overheads)
}

fn entry(o: &Overheads) -> String {
    let architecture = match o.architecture {
        GpuArchitecture::Hopper => "hopper",
        GpuArchitecture::Blackwell => "blackwell",
        GpuArchitecture::Cpu => "cpu",
        GpuArchitecture::Generic => "generic",
    };
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = write!(
        out,
        "[[overheads]]\nengine = {:?}\narchitecture = {architecture:?}\nstep_us = {:.1}\nstep_request_us = {:.1}\ngraph_layer_us = {:.1}\neager_layer_us = {:.1}\nprefill_pass_us = {:.1}\nrequest_us = {:.1}\nprompt_token_us = {:.2}\ndecode_scale = {:.3}\nprefill_scale = {:.3}\nexpert_spread = {:.2}\ntpot_sigma = {:.3}\nttft_sigma = {:.3}\nruns = {}\nsource = {:?}",
        o.engine,
        o.step_us,
        o.step_request_us,
        o.graph_layer_us,
        o.eager_layer_us,
        o.prefill_pass_us,
        o.request_us,
        o.prompt_token_us,
        o.decode_scale,
        o.prefill_scale,
        o.expert_spread,
        o.tpot_sigma,
        o.ttft_sigma,
        o.runs,
        o.source,
    );
    for code in &o.model_code {
        let _ = write!(
            out,
            "\n\n[[overheads.model_code]]\narchitecture = {:?}\ndecode = {:.3}\nprefill = {:.3}\nrequest = {:.2}",
            code.architecture, code.decode, code.prefill, code.request
        );
    }
    for release in &o.front_ends {
        let _ = write!(
            out,
            "\n\n[[overheads.front_ends]]\nversion = \"{}\"\nrequest = {:.2}",
            release.version, release.request
        );
    }
    out
}

/// The file with the entries of every engine and architecture in `fitted` replaced; comments before
/// the first entry and all other entries stay as they are.
pub(super) fn render(old: &str, fitted: &[Overheads]) -> Result<String> {
    let (mut header, mut old_entries): (Vec<String>, Vec<String>) = Default::default();
    for block in old.trim_end().split("\n\n") {
        let block = block.trim_matches('\n');
        match old_entries.last_mut() {
            _ if block.contains("[[overheads]]") => old_entries.push(block.to_owned()),
            // A table of the entry before it.
            Some(entry) => *entry += &format!("\n\n{block}"),
            None => header.push(block.to_owned()),
        }
    }
    let mut kept = Vec::new();
    for block in old_entries {
        let fitted_again = |o: &Overheads| {
            fitted
                .iter()
                .any(|f| (&f.engine, f.architecture) == (&o.engine, o.architecture))
        };
        if !parse(&block)?.iter().any(fitted_again) {
            kept.push(block);
        }
    }
    let blocks: Vec<String> = header
        .into_iter()
        .chain(fitted.iter().map(entry))
        .chain(kept)
        .collect();
    Ok(blocks.join("\n\n") + "\n")
}

/// What differs between the entries that are there and fresh ones, by more than `tolerance` of the
/// larger figure and more than one in the last digit written.
pub(super) fn differences(old: &[Overheads], fresh: &[Overheads], tolerance: f64) -> Vec<String> {
    let mut out = Vec::new();
    for new in fresh {
        let name = format!("{} {:?}", new.engine, new.architecture);
        let Some(was) = old
            .iter()
            .find(|o| o.engine == new.engine && o.architecture == new.architecture)
        else {
            out.push(format!("{name}: no entry"));
            continue;
        };
        let mut figures: Vec<(String, f64, f64, f64)> = [
            ("step_us", was.step_us, new.step_us, 1.0),
            (
                "step_request_us",
                was.step_request_us,
                new.step_request_us,
                0.1,
            ),
            (
                "graph_layer_us",
                was.graph_layer_us,
                new.graph_layer_us,
                0.1,
            ),
            (
                "eager_layer_us",
                was.eager_layer_us,
                new.eager_layer_us,
                1.0,
            ),
            (
                "prefill_pass_us",
                was.prefill_pass_us,
                new.prefill_pass_us,
                1.0,
            ),
            ("request_us", was.request_us, new.request_us, 1.0),
            (
                "prompt_token_us",
                was.prompt_token_us,
                new.prompt_token_us,
                0.01,
            ),
            ("decode_scale", was.decode_scale, new.decode_scale, 0.001),
            ("prefill_scale", was.prefill_scale, new.prefill_scale, 0.001),
            ("expert_spread", was.expert_spread, new.expert_spread, 0.01),
            ("tpot_sigma", was.tpot_sigma, new.tpot_sigma, 0.001),
            ("ttft_sigma", was.ttft_sigma, new.ttft_sigma, 0.001),
            ("runs", f64::from(was.runs), f64::from(new.runs), 0.0),
        ]
        .map(|(figure, a, b, digit)| (figure.to_owned(), a, b, digit))
        .into();
        for code in &new.model_code {
            let name = &code.architecture;
            let old = was.model_code(name);
            figures.push((format!("decode of {name}"), old.decode, code.decode, 0.001));
            figures.push((
                format!("prefill of {name}"),
                old.prefill,
                code.prefill,
                0.001,
            ));
            figures.push((
                format!("request of {name}"),
                old.request,
                code.request,
                0.01,
            ));
        }
        for release in &new.front_ends {
            let old = was.front_ends.iter().find(|r| r.version == release.version);
            let name = format!("request of {}", release.version);
            figures.push((name, old.map_or(1.0, |r| r.request), release.request, 0.01));
        }
        for (figure, a, b, digit) in figures {
            let allowed = (tolerance * a.abs().max(b.abs())).max(1.01 * digit);
            if (a - b).abs() > allowed {
                out.push(format!("{name}: {figure} is {a}, a fresh fit gives {b}"));
            }
        }
    }
    out
}
