//! `profiles list`.

use crate::args::ProfileKind;
use crate::failure::Failure;
use crate::json;
use crate::output::Style;
use crate::render::{Page, Table, number};
use parplan_profiles::{Dtype, Lengths, Library, LinkKind, Listed, Load};
use serde::Serialize;
use std::collections::BTreeMap;

/// A profile as listed in JSON.
#[derive(Debug, Serialize)]
struct Entry {
    name: String,
    aliases: Vec<String>,
    /// The user's file; none for a built-in profile.
    file: Option<String>,
}

impl From<Listed> for Entry {
    fn from(listed: Listed) -> Entry {
        Entry {
            name: listed.name,
            aliases: listed.aliases,
            file: listed.file.map(|path| path.display().to_string()),
        }
    }
}

pub(super) fn run(
    library: &Library,
    only: Option<ProfileKind>,
    as_json: bool,
    style: Style,
) -> Result<String, Failure> {
    let kinds = match only {
        Some(kind) => vec![kind],
        None => vec![
            ProfileKind::Models,
            ProfileKind::Gpus,
            ProfileKind::Engines,
            ProfileKind::Workloads,
        ],
    };
    if as_json {
        let mut all = BTreeMap::new();
        for kind in kinds {
            let entries: Vec<Entry> = listed(library, kind)?
                .into_iter()
                .map(Entry::from)
                .collect();
            all.insert(kind.plural(), entries);
        }
        return json::print(&all);
    }
    let mut page = Page::new(style);
    for kind in kinds {
        match kind {
            ProfileKind::Models => models(&mut page, library)?,
            ProfileKind::Gpus => gpus(&mut page, library)?,
            ProfileKind::Engines => engines(&mut page, library)?,
            ProfileKind::Workloads => workloads(&mut page, library)?,
        }
    }
    Ok(page.finish())
}

fn listed(library: &Library, kind: ProfileKind) -> Result<Vec<Listed>, Failure> {
    Ok(match kind {
        ProfileKind::Models => library.models()?,
        ProfileKind::Gpus => library.gpus()?,
        ProfileKind::Engines => library.engines()?,
        ProfileKind::Workloads => library.workloads()?,
    })
}

/// Where a profile comes from, where that is not the binary.
fn origin(listed: &Listed) -> String {
    match &listed.file {
        Some(_) => "yours".to_owned(),
        None => String::new(),
    }
}

fn models(page: &mut Page, library: &Library) -> Result<(), Failure> {
    page.heading("Models");
    let mut table = Table::new(&[
        "name",
        ">total B",
        ">active B",
        "weights",
        "KV",
        ">context",
        "",
    ]);
    for listed in library.models()? {
        let model = library.model(&listed.name)?;
        let params = model.params();
        let weights = if model.is_moe() {
            model.weights.experts
        } else {
            model.weights.dense_ffn
        };
        table.row([
            listed.name.clone(),
            billions(params.total()),
            billions(params.active()),
            Dtype::name(weights).to_owned(),
            Dtype::name(model.kv_dtype).to_owned(),
            number::whole(f64::from(model.max_position)),
            origin(&listed),
        ]);
    }
    page.table(&table);
    page.aside(
        "Parameters in billions, counted from the dimensions: total without MTP layers; active \
         includes the output projection. Weights: the format of the feed-forward blocks.",
    );
    Ok(())
}

fn billions(count: u64) -> String {
    number::fixed(count as f64 / 1e9, 1)
}

fn gpus(page: &mut Page, library: &Library) -> Result<(), Failure> {
    page.heading("GPUs");
    let mut table = Table::new(&[
        "name",
        ">GiB",
        ">TB/s",
        ">bf16 TFLOP/s",
        ">fp8",
        "link",
        ">GB/s",
        ">a node",
        "",
    ]);
    for listed in library.gpus()? {
        let gpu = library.gpu(&listed.name)?;
        table.row([
            listed.name.clone(),
            number::fixed(gpu.memory_mib as f64 / 1024.0, 1),
            number::fixed(gpu.memory_bytes_per_s / 1e12, 2),
            number::whole(gpu.tensor.bf16 / 1e12),
            gpu.tensor
                .fp8
                .map_or_else(|| "-".to_owned(), |rate| number::whole(rate / 1e12)),
            match gpu.link.kind {
                LinkKind::Nvlink => "NVLink",
                LinkKind::Xgmi => "xGMI",
                LinkKind::Pcie => "PCIe",
            }
            .to_owned(),
            number::whole(gpu.link.bytes_per_s / 1e9),
            gpu.gpus_per_node.to_string(),
            origin(&listed),
        ]);
    }
    page.table(&table);
    page.aside("Memory as the driver reports it; dense rates; link a GPU and direction.");
    Ok(())
}

fn engines(page: &mut Page, library: &Library) -> Result<(), Failure> {
    page.heading("Engines");
    let mut table = Table::new(&["name", "from", "to", "launch flags", ""]);
    for listed in library.engines()? {
        let engine = library.engine(&listed.name)?;
        table.row([
            listed.name.clone(),
            engine.oldest.to_string(),
            engine.newest.to_string(),
            if engine.verified {
                "run through its own parser"
            } else {
                "from its sources"
            }
            .to_owned(),
            origin(&listed),
        ]);
    }
    page.table(&table);
    Ok(())
}

fn workloads(page: &mut Page, library: &Library) -> Result<(), Failure> {
    page.heading("Workloads");
    let mut table = Table::new(&[
        "name", ">prompt", ">longest", ">output", ">longest", "load", ">hits %", "",
    ]);
    for listed in library.workloads()? {
        let workload = library.workload(&listed.name)?;
        let mean = |lengths: &Lengths| lengths.mean().map_or_else(String::new, number::whole);
        let longest = |lengths: &Lengths| {
            let most = lengths.max().map(f64::from);
            most.map_or_else(String::new, number::whole)
        };
        table.row([
            listed.name.clone(),
            mean(&workload.input),
            longest(&workload.input),
            mean(&workload.output),
            longest(&workload.output),
            match workload.load {
                Load::Concurrency { requests } => format!("{requests} clients"),
                Load::Rate { requests_per_s } => {
                    format!("{} req/s", number::plain(requests_per_s))
                }
            },
            number::percent(workload.prefix_hit),
            origin(&listed),
        ]);
    }
    page.table(&table);
    page.aside("Tokens on average and at most; `--workload NAME` plans for one of them.");
    Ok(())
}
