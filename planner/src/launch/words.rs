//! Arguments of a command, spelled by an engine's flag data.

use super::{LaunchError, NodeCommand, Place, no_option};
use parplan_profiles::engine::EngineRules;
use parplan_profiles::engine::flags::{FlagForm, Meaning};
use std::collections::BTreeMap;

/// A command under construction.
pub(super) struct Words<'a> {
    rules: &'a EngineRules,
    argv: Vec<String>,
    env: BTreeMap<String, String>,
    files: Vec<(String, String)>,
}

impl<'a> Words<'a> {
    pub(super) fn new(rules: &'a EngineRules, program: &[&str]) -> Self {
        Self {
            rules,
            argv: program.iter().map(|&word| word.to_owned()).collect(),
            env: BTreeMap::new(),
            files: Vec::new(),
        }
    }

    /// Says something with one value, or with none for a switch.
    ///
    /// # Errors
    /// The version has no option for it.
    pub(super) fn say(&mut self, meaning: Meaning, value: &str) -> Result<(), LaunchError> {
        self.say_all(meaning, std::slice::from_ref(&value.to_owned()))
    }

    /// A number.
    ///
    /// # Errors
    /// The version has no option for it.
    pub(super) fn number(
        &mut self,
        meaning: Meaning,
        value: impl ToString,
    ) -> Result<(), LaunchError> {
        self.say(meaning, &value.to_string())
    }

    /// A number, where there is one.
    ///
    /// # Errors
    /// There is one, and the version has no option for it.
    pub(super) fn maybe(
        &mut self,
        meaning: Meaning,
        value: Option<impl ToString>,
    ) -> Result<(), LaunchError> {
        value.map_or(Ok(()), |value| self.number(meaning, value))
    }

    /// A switch, where it is on.
    ///
    /// # Errors
    /// It is on, and the version has no option for it.
    pub(super) fn switch(&mut self, meaning: Meaning, on: bool) -> Result<(), LaunchError> {
        if on {
            self.say_all(meaning, &[])
        } else {
            Ok(())
        }
    }

    /// Several values.
    ///
    /// # Errors
    /// The version has no option for it.
    pub(super) fn say_all(
        &mut self,
        meaning: Meaning,
        values: &[String],
    ) -> Result<(), LaunchError> {
        let flag = self
            .rules
            .flags
            .get(&meaning)
            .ok_or_else(|| no_option(self.rules, meaning))?;
        match flag.form {
            FlagForm::Environment => {}
            FlagForm::Switch => self.argv.push(flag.flag.clone()),
            FlagForm::Positional => self.argv.extend_from_slice(values),
            FlagForm::Value | FlagForm::Values | FlagForm::Json => {
                self.argv.push(flag.flag.clone());
                self.argv.extend_from_slice(values);
            }
        }
        self.argv.extend(flag.with.iter().cloned());
        self.env.extend(
            flag.env
                .iter()
                .map(|(name, value)| (name.clone(), value.clone())),
        );
        Ok(())
    }

    /// Whether the version can say it.
    pub(super) fn knows(&self, meaning: Meaning) -> bool {
        self.rules.flags.contains_key(&meaning)
    }

    pub(super) fn file(&mut self, name: &str, content: String) {
        self.files.push((name.to_owned(), content));
    }

    /// The whole command, with what a person adds to it.
    ///
    /// # Errors
    /// An added option that the plan gives already: of two the engine takes the last, and what starts
    /// would not be what was planned.
    pub(super) fn finish(
        mut self,
        place: &Place,
        serves: bool,
        extra: &[String],
    ) -> Result<NodeCommand, LaunchError> {
        let planned = self.argv.iter().filter_map(|word| LongName::of(word));
        let planned: Vec<LongName> = planned.collect();
        let repeats = |word: &&String| planned.iter().any(|option| option.is_meant_by(word));
        if let Some(twice) = extra.iter().find(repeats) {
            return Err(LaunchError::Value {
                field: "extra argument",
                value: twice.clone(),
                why:
                    "the plan gives this option; plan again with the value that you want, or leave \
                      it out"
                        .to_owned(),
            });
        }
        self.argv.extend_from_slice(extra);
        Ok(NodeCommand {
            replica: place.replica,
            node: place.node,
            machine: place.machine.clone(),
            gpus: place.gpus,
            port: serves.then_some(place.port),
            argv: self.argv,
            env: self.env,
            files: self.files,
        })
    }
}

/// What an option decides, for a sentence.
pub(super) fn describe(meaning: Meaning) -> &'static str {
    match meaning {
        Meaning::Model => "the model",
        Meaning::ServedName => "the served name",
        Meaning::Host => "the address to listen on",
        Meaning::Port => "the port",
        Meaning::Tp => "tensor parallelism",
        Meaning::AttentionDp => "attention data parallelism",
        Meaning::Replicas => "replicas behind one server",
        Meaning::Ep => "an expert-parallel width",
        Meaning::EpSwitch => "expert parallelism",
        Meaning::MoeTp => "expert tensor parallelism",
        Meaning::Pp => "pipeline stages",
        Meaning::Dcp => "decode context parallelism",
        Meaning::DcpMerge => "the merge of a DCP group",
        Meaning::DcpReplicateQ => "replicated queries",
        Meaning::Nodes | Meaning::NodeRank => "several nodes",
        Meaning::Rendezvous | Meaning::RendezvousHost | Meaning::RendezvousPort => {
            "the meeting point of nodes"
        }
        Meaning::DataParallelHost
        | Meaning::DataParallelPort
        | Meaning::DataParallelStart
        | Meaning::DataParallelLocal => "data-parallel ranks over nodes",
        Meaning::Headless => "engines without a server",
        Meaning::RunningRequests => "the limit of running requests",
        Meaning::ChunkTokens => "the tokens of a chunk or step",
        Meaning::ReceiveInterval => "looking for requests every few steps",
        Meaning::MemoryFraction => "the memory fraction",
        Meaning::Quantization => "weights quantised while loading",
        Meaning::KvDtype => "the KV cache format",
        Meaning::ContextLength => "the longest sequence",
        Meaning::LongContext => "sequences beyond the model's own length",
        Meaning::PageSize => "the KV page",
        Meaning::GraphSizes => "captured graph sizes",
        Meaning::GraphLargest => "the largest captured graph",
        Meaning::GraphsOff => "running without graphs",
        Meaning::PrefillGraphsOff => "running without prefill graphs",
        Meaning::SymmetricMemory => "symmetric memory",
        Meaning::CustomAllReduceOff => "running without the custom all-reduce",
        Meaning::ExpertBackend => "the expert all-to-all backend",
        Meaning::ExpertKernel => "choosing the kernels of the experts",
        Meaning::DeepepMode => "the DeepEP mode",
        Meaning::Speculation
        | Meaning::SpeculationAlgorithm
        | Meaning::SpeculationSteps
        | Meaning::SpeculationTopK
        | Meaning::SpeculationTokens
        | Meaning::SpeculationModel => "speculative decoding",
        Meaning::DenseTp => "unsplit dense layers",
        Meaning::DpLmHead => "an output projection by data-parallel rank",
        Meaning::PrefixCacheOff => "running without the prefix cache",
        Meaning::TrustRemoteCode => "code of the model repository",
        Meaning::OptionsFile => "a file of options",
    }
}

/// The long name of an option, its words apart.
struct LongName(Vec<String>);

impl LongName {
    /// The option's name in a word of a command line: `--NAME`, or `--NAME=VALUE`.
    fn of(word: &str) -> Option<Self> {
        let name = word.split('=').next()?.strip_prefix("--")?;
        let words = name.split(['-', '_']).map(str::to_owned).collect();
        (!name.is_empty()).then_some(LongName(words))
    }

    fn joined(&self) -> String {
        self.0.join("-")
    }

    /// `tp-size` for `tensor-parallel-size`, as engines name one thing twice.
    fn short_of_size(&self) -> Option<String> {
        match self.0.as_slice() {
            [short, size] if size == "size" => Some(format!("{short}-size")),
            [first @ .., size] if size == "size" => Some(format!("{}-size", initials(first))),
            _ => None,
        }
    }

    /// Whether an engine takes `word` for this option: under its name with either dash, by the start of
    /// it (as Python's argparse allows), by its initials (vLLM's `-tp`), or spelled out or shortened.
    fn is_meant_by(&self, word: &str) -> bool {
        if let Some(typed) = LongName::of(word) {
            let size = typed.short_of_size();
            return self.joined().starts_with(&typed.joined())
                || (size.is_some() && size == self.short_of_size());
        }
        let short = word.strip_prefix('-').unwrap_or_default();
        let short = short.split('=').next().unwrap_or_default();
        !short.is_empty()
            && short.chars().all(|c| c.is_ascii_lowercase())
            && initials(&self.0).starts_with(short)
    }
}

fn initials(words: &[String]) -> String {
    words
        .iter()
        .filter_map(|word| word.chars().next())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::LongName;

    #[test]
    fn an_option_is_known_under_every_name_that_engines_take() {
        let meant = |planned: &str, typed: &str| LongName::of(planned).unwrap().is_meant_by(typed);
        for (planned, typed) in [
            ("--tp-size", "--tp-size=4"),
            ("--tp-size", "--tp_size"),
            ("--tp-size", "--tp"),
            ("--tp-size", "--tensor-parallel-size"),
            ("--tensor-parallel-size", "-tp"),
            ("--tensor-parallel-size", "--tensor_parallel_size=2"),
            ("--decode-context-parallel-size", "-dcp"),
            ("--max-model-len", "--max-model"),
        ] {
            assert!(meant(planned, typed), "{planned} {typed}");
        }
        for (planned, typed) in [
            ("--tp-size", "--pp-size"),
            ("--tp-size", "--pipeline-parallel-size"),
            ("--tensor-parallel-size", "-O3"),
            ("--tensor-parallel-size", "4"),
            ("--tensor-parallel-size", "-1"),
            ("--port", "--trust-remote-code"),
            ("--chunked-prefill-size", "--context-length"),
        ] {
            assert!(!meant(planned, typed), "{planned} {typed}");
        }
    }
}
