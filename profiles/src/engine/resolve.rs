//! What holds for one version of an engine.

use super::flags::{DraftMethod, Flag, Meaning};
use super::rules::{
    AllReduceRule, DcpRule, ExpertExchange, FormatRule, FusionRule, GeometryRule, GraphRule,
    KernelRule, MemoryRule, PaddingRule, SchedulerRule, SizeDefaults, StatePoolRule, SymmetricRule,
    SyncRule,
};
use super::version::{Version, VersionError};
use super::{Dialect, EngineError, EngineProfile, Since};
use crate::dtype::Dtype;
use crate::gpu::Vendor;
use serde::Serialize;
use std::collections::BTreeMap;

/// What holds for one version of one engine.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct EngineRules {
    /// Short name of the engine.
    pub name: String,
    /// The version whose rules these are.
    pub version: Version,
    /// What was asked for, when it was not this version and the nearest was assumed.
    pub assumed_for: Option<String>,
    /// The form of its commands.
    pub dialect: Dialect,
    /// Commands were run through the engine's own parser.
    pub verified: bool,
    /// It runs parplan's own kernels, which samples of them price.
    pub own_kernels: bool,
    /// Makers of the devices that it runs on; empty for any.
    pub vendors: Vec<Vendor>,
    /// Splits and their meaning.
    pub geometry: GeometryRule,
    /// Padding of data-parallel rows.
    pub padding: PaddingRule,
    /// CUDA graphs.
    pub graphs: GraphRule,
    /// Sizes by GPU memory.
    pub sizes: SizeDefaults,
    /// Memory for weights and KV cache.
    pub memory: MemoryRule,
    /// Memory for recurrent states; none where states and KV rows share it.
    pub state_pool: Option<StatePoolRule>,
    /// Batching.
    pub scheduler: SchedulerRule,
    /// Exchange of batch shapes.
    pub sync: SyncRule,
    /// Decode context parallelism; none where the version lacks it.
    pub dcp: Option<DcpRule>,
    /// The version that first has decode context parallelism, if any does.
    pub dcp_since: Option<Version>,
    /// All-reduce implementations.
    pub all_reduce: AllReduceRule,
    /// Symmetric memory; none where the version lacks it.
    pub symmetric: Option<SymmetricRule>,
    /// Expert all-to-all.
    pub experts: ExpertExchange,
    /// Kernels of a layer, where they are known one by one.
    pub kernels: Option<KernelRule>,
    /// Kernels that are folded into others, where they are known.
    pub fusion: Option<FusionRule>,
    /// Number formats that need a device of some kind, where they are known.
    pub formats: Option<FormatRule>,
    /// Spellings of KV cache formats; a format that is not here cannot be asked for.
    pub kv_names: BTreeMap<Dtype, String>,
    /// Spellings of formats that a checkpoint in bf16 is quantised to while it is loaded; a format that
    /// is not here cannot be asked for.
    pub load_names: BTreeMap<Dtype, String>,
    /// Spellings of ways to draft; a way that is not here cannot be asked for.
    pub draft_names: BTreeMap<DraftMethod, String>,
    /// Spellings that hold.
    pub flags: BTreeMap<Meaning, Flag>,
    /// Where each rule is written, by kind of rule.
    pub sources: BTreeMap<&'static str, String>,
}

impl EngineProfile {
    /// The rules of a version as a user wrote it; the newest when none was written.
    ///
    /// With `assume`, a version that is outside of the range or cannot be ordered gets the nearest
    /// rules, and [`EngineRules::assumed_for`] says so.
    ///
    /// # Errors
    /// A version that cannot be read, or is out of range, when nothing may be assumed.
    pub fn resolve(&self, version: Option<&str>, assume: bool) -> Result<EngineRules, EngineError> {
        let Some(text) = version else {
            return self.rules(self.newest);
        };
        let parsed: Version = match text.parse() {
            Ok(version) => version,
            Err(VersionError::Nightly(_)) if assume => {
                let mut rules = self.rules(self.newest)?;
                rules.assumed_for = Some(text.to_owned());
                return Ok(rules);
            }
            Err(source) => {
                return Err(EngineError::Version {
                    engine: self.name.clone(),
                    source,
                });
            }
        };
        match self.rules(parsed) {
            Err(EngineError::OutOfRange { nearest, .. }) if assume => {
                let mut rules = self.rules(nearest)?;
                rules.assumed_for = Some(text.to_owned());
                Ok(rules)
            }
            other => other,
        }
    }

    /// The rules of one version.
    ///
    /// # Errors
    /// [`EngineError::OutOfRange`], or a fault in a profile that was not validated.
    pub fn rules(&self, version: Version) -> Result<EngineRules, EngineError> {
        if version < self.oldest || !self.covers_end(version) {
            return Err(EngineError::OutOfRange {
                engine: self.name.clone(),
                asked: version,
                oldest: self.oldest,
                newest: self.newest,
                nearest: if version < self.oldest {
                    self.oldest
                } else {
                    self.newest
                },
            });
        }
        let mut sources = BTreeMap::new();
        let flags = self
            .flags
            .iter()
            .filter_map(|(meaning, spellings)| {
                let flag = spellings.iter().find(|flag| flag.holds(version))?;
                Some((*meaning, flag.clone()))
            })
            .collect();
        let name = &self.name;
        Ok(EngineRules {
            name: name.clone(),
            version,
            assumed_for: None,
            dialect: self.dialect,
            verified: self.verified,
            own_kernels: self.own_kernels,
            vendors: self.vendors.clone(),
            geometry: required(&self.geometry, version, "geometry", name, &mut sources)?,
            padding: required(&self.padding, version, "padding", name, &mut sources)?,
            graphs: required(&self.graphs, version, "graphs", name, &mut sources)?,
            sizes: required(&self.sizes, version, "sizes", name, &mut sources)?,
            memory: required(&self.memory, version, "memory", name, &mut sources)?,
            state_pool: latest(&self.state_pool, version, "state_pool", &mut sources),
            scheduler: required(&self.scheduler, version, "scheduler", name, &mut sources)?,
            sync: required(&self.sync, version, "sync", name, &mut sources)?,
            dcp: latest(&self.dcp, version, "dcp", &mut sources),
            dcp_since: self.dcp.first().map(|first| first.from),
            all_reduce: required(&self.all_reduce, version, "all_reduce", name, &mut sources)?,
            symmetric: latest(&self.symmetric, version, "symmetric", &mut sources),
            experts: required(&self.experts, version, "experts", name, &mut sources)?,
            kernels: latest(&self.kernels, version, "kernels", &mut sources),
            fusion: latest(&self.fusion, version, "fusion", &mut sources),
            formats: latest(&self.formats, version, "formats", &mut sources),
            draft_names: required(
                &self.draft_names,
                version,
                "draft_names",
                name,
                &mut sources,
            )?,
            kv_names: required(&self.kv_names, version, "kv_names", name, &mut sources)?,
            load_names: latest(&self.load_names, version, "load_names", &mut sources)
                .unwrap_or_default(),
            flags,
            sources,
        })
    }

    /// Patch and post releases of the newest minor version keep its rules; later ones are unknown.
    fn covers_end(&self, version: Version) -> bool {
        version <= self.newest || version.triple() == self.newest.triple()
    }
}

fn latest<T: Clone>(
    entries: &[Since<T>],
    version: Version,
    kind: &'static str,
    sources: &mut BTreeMap<&'static str, String>,
) -> Option<T> {
    let entry = entries.iter().rev().find(|entry| entry.from <= version)?;
    sources.insert(kind, entry.source.clone());
    Some(entry.rule.clone())
}

fn required<T: Clone>(
    entries: &[Since<T>],
    version: Version,
    kind: &'static str,
    engine: &str,
    sources: &mut BTreeMap<&'static str, String>,
) -> Result<T, EngineError> {
    latest(entries, version, kind, sources).ok_or_else(|| EngineError::Fault {
        engine: engine.to_owned(),
        fault: format!("no [[{kind}]] entry holds for version {version}"),
    })
}
