//! A side of a comparison, typed as one word: `tp=8,attn-dp=8,ep=8,symm=on`.

use super::{KvFormat, LayoutArgs, QuestionArgs, Switch, values};
use clap::ValueEnum;
use std::str::FromStr;

/// What a side fixes; the shared options decide the rest.
#[derive(Debug, Clone, Default)]
pub struct Side {
    layout: LayoutArgs,
    kv: Option<KvFormat>,
    graphs: Option<Switch>,
    symmetric: Option<Switch>,
    all_to_all: Option<Switch>,
    engine: Option<String>,
    memory: Option<f64>,
    running: Option<u32>,
    chunk: Option<u32>,
}

/// The keys, for help and for messages.
const KEYS: &str =
    "tp, attn-dp, dcp, ep, pp, replicas, kv, graphs, symm, a2a, engine, mem, max-running, chunk";

impl Side {
    /// The whole of one side: what it fixes, over the shared options.
    pub fn over(&self, shared: &QuestionArgs) -> QuestionArgs {
        let mut question = shared.clone();
        if let Some(kv) = self.kv {
            question.switches.kv_dtype = vec![kv];
        }
        for (typed, option) in [
            (self.graphs, &mut question.switches.cuda_graphs),
            (self.symmetric, &mut question.switches.symmetric_memory),
            (self.all_to_all, &mut question.switches.expert_all_to_all),
        ] {
            if let Some(typed) = typed {
                *option = typed;
            }
        }
        if let Some(engine) = &self.engine {
            question.engine.engine = Some(engine.clone());
        }
        let settings = &mut question.settings;
        settings.memory_fraction = self.memory.or(settings.memory_fraction);
        settings.max_running_requests = self.running.or(settings.max_running_requests);
        settings.chunk_tokens = self.chunk.or(settings.chunk_tokens);
        let mine = &self.layout;
        let layout = &mut question.layout;
        for (typed, size) in [
            (mine.tp, &mut layout.tp),
            (mine.attn_dp, &mut layout.attn_dp),
            (mine.dcp, &mut layout.dcp),
            (mine.ep, &mut layout.ep),
            (mine.pp, &mut layout.pp),
            (mine.replicas, &mut layout.replicas),
        ] {
            *size = typed.or(*size);
        }
        question
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), String> {
        let layout = &mut self.layout;
        let size = |slot: &mut Option<u32>| {
            *slot = Some(values::gpus(value)?);
            Ok(())
        };
        let switch = |slot: &mut Option<Switch>| {
            *slot = Some(Switch::from_str(value, false).map_err(|_| "must be on, off or auto")?);
            Ok(())
        };
        let set: Result<(), String> = match key {
            "tp" => size(&mut layout.tp),
            "attn-dp" => size(&mut layout.attn_dp),
            "dcp" => size(&mut layout.dcp),
            "ep" => size(&mut layout.ep),
            "pp" => size(&mut layout.pp),
            "replicas" => size(&mut layout.replicas),
            "graphs" => switch(&mut self.graphs),
            "symm" => switch(&mut self.symmetric),
            "a2a" => switch(&mut self.all_to_all),
            "kv" => value.parse().map(|kv| self.kv = Some(kv)),
            "mem" => values::positive_share(value).map(|share| self.memory = Some(share)),
            "max-running" => values::requests(value).map(|limit| self.running = Some(limit)),
            "chunk" => values::tokens(value).map(|tokens| self.chunk = Some(tokens)),
            "engine" if value.is_empty() => Err("must be NAME or NAME@VERSION".to_owned()),
            "engine" => {
                self.engine = Some(value.to_owned());
                Ok(())
            }
            "dp" => {
                return Err(
                    "has no key `dp`: attn-dp is groups of ranks inside tp that hold \
                            different requests, replicas is copies of the whole engine"
                        .to_owned(),
                );
            }
            _ => return Err(format!("has no key `{key}`; the keys are {KEYS}")),
        };
        set.map_err(|why| format!("{key}={value}: {why}"))
    }
}

impl FromStr for Side {
    type Err = String;

    fn from_str(text: &str) -> Result<Side, String> {
        let mut side = Side::default();
        let mut seen: Vec<&str> = Vec::new();
        for pair in text.split(',') {
            let (key, value) = pair.split_once('=').ok_or_else(|| {
                format!("needs key=value pairs such as tp=8,attn-dp=8; the keys are {KEYS}")
            })?;
            let key = key.trim();
            if seen.contains(&key) {
                return Err(format!("gives {key} twice"));
            }
            seen.push(key);
            side.set(key, value.trim())?;
        }
        Ok(side)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_side_fixes_what_it_names() {
        let side: Side =
            "tp=8,attn-dp=8,ep=8,symm=on,kv=fp8,engine=vllm@0.33.0,mem=0.85,chunk=4096"
                .parse()
                .unwrap();
        assert_eq!(
            (side.layout.tp, side.layout.attn_dp, side.layout.pp),
            (Some(8), Some(8), None)
        );
        assert_eq!(side.symmetric, Some(Switch::On));
        assert_eq!(
            (side.memory, side.running, side.chunk),
            (Some(0.85), None, Some(4096))
        );
        assert_eq!(side.engine.as_deref(), Some("vllm@0.33.0"));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, part) in [
            ("", "key=value"),
            ("tp", "key=value"),
            ("tp=8,tp=4", "tp twice"),
            ("tpp=8", "keys are tp"),
            ("dp=8", "attn-dp is groups"),
            ("tp=0", "tp=0: must be a whole number"),
            ("symm=yes", "on, off or auto"),
            ("kv=int4", "kv=int4"),
            ("engine=", "NAME"),
            ("mem=1.5", "mem=1.5"),
            ("max-running=0", "max-running=0"),
        ] {
            let message = text.parse::<Side>().unwrap_err();
            assert!(message.contains(part), "{text}: {message}");
        }
    }
}
