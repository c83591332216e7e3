//! nccl-tests: its table, and the JSON that `-J` writes (src/util.cu of nccl-tests).

use super::{Hints, Imported, effective};
use parplan_profiles::calibration::{
    BufferRegistration, CollectiveKind, Experiment, LaunchMode, Measured, Probe,
};
use serde_json::Value;

/// What is the same for all rows of a run.
struct Run {
    collective: CollectiveKind,
    registration: BufferRegistration,
    launch: LaunchMode,
    ranks: u32,
    implementation: String,
}

impl Run {
    fn sample(&self, bytes: u64, in_place: bool, us: f64) -> Measured {
        Measured {
            experiment: Experiment {
                ranks: self.ranks,
                launch: self.launch,
                decides: String::new(),
                probe: Probe::Collective {
                    collective: self.collective,
                    bytes,
                    registration: effective(
                        self.registration,
                        self.launch == LaunchMode::Graph,
                        bytes,
                    ),
                    in_place,
                },
            },
            implementation: self.implementation.clone(),
            repeats: vec![us],
            anchor_us: Vec::new(),
            remarks: vec!["nccl-tests, mean of its iterations".to_owned()],
        }
    }
}

/// The collective of a program: `all_gather_perf`, with or without its folder.
fn of_program(program: &str) -> Option<CollectiveKind> {
    let name = program.rsplit('/').next().unwrap_or(program);
    let name = name
        .trim()
        .trim_end_matches("_perf")
        .trim_end_matches("_mpi");
    match name {
        "alltoall" => Some(CollectiveKind::AllToAll),
        _ => CollectiveKind::ALL.into_iter().find(|k| k.name() == name),
    }
}

fn unknown(program: &str) -> String {
    format!(
        "'{program}' is no collective that is priced; known: all_gather, reduce_scatter, all_reduce, \
         alltoall"
    )
}

/// `22803` to `2.28.3`.
fn version(number: u64) -> String {
    if number < 10_000 {
        format!("{}.{}.{}", number / 1000, number % 1000 / 100, number % 100)
    } else {
        format!(
            "{}.{}.{}",
            number / 10_000,
            number % 10_000 / 100,
            number % 100
        )
    }
}

fn after<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.lines()
        .filter(|line| line.starts_with('#'))
        .find_map(|line| line.split_once(key))
        .and_then(|(_, rest)| rest.split_whitespace().next())
}

/// The table on standard output.
pub(super) fn text(text: &str, hints: Hints) -> Result<Imported, String> {
    let program = after(text, "Collective test starting:");
    let collective = match (program, hints.collective) {
        (_, Some(told)) => told,
        (Some(program), None) => of_program(program).ok_or_else(|| unknown(program))?,
        (None, None) => {
            return Err(
                "does not name its collective, as older nccl-tests do not: give --collective"
                    .to_owned(),
            );
        }
    };
    let graph = after(text, "graph:").is_some_and(|n| n != "0");
    let devices: Vec<&str> = text
        .lines()
        .filter(|line| line.starts_with("#  Rank"))
        .collect();
    let device = devices
        .first()
        .and_then(|line| line.split_once(']'))
        .map(|(_, name)| name.trim().to_owned());
    let nccl = after(text, "nccl-library=")
        .and_then(|n| n.parse().ok())
        .map(version);
    let run = Run {
        collective,
        registration: hints.registration.unwrap_or(BufferRegistration::None),
        launch: if graph {
            LaunchMode::Graph
        } else {
            LaunchMode::Stream
        },
        ranks: u32::try_from(devices.len()).unwrap_or(0),
        implementation: implementation(nccl.as_deref()),
    };
    if run.ranks < 2 {
        return Err(format!(
            "lists {} devices (lines '#  Rank …'); a collective needs at least 2",
            devices.len()
        ));
    }
    let mut samples = Vec::new();
    let mut notes = Vec::new();
    for line in text
        .lines()
        .filter(|line| !line.trim_start().starts_with('#'))
    {
        let cells: Vec<&str> = line.split_whitespace().collect();
        let Some(Ok(bytes)) = cells.first().map(|c| c.parse::<u64>()) else {
            continue;
        };
        // size count type redop root | time algbw busbw #wrong | time algbw busbw #wrong
        for (at, in_place) in [(5, false), (9, true)] {
            let time = cells.get(at).and_then(|c| c.parse::<f64>().ok());
            let wrong = cells.get(at + 3).and_then(|c| c.parse::<f64>().ok());
            take(&run, bytes, in_place, time, wrong, &mut samples, &mut notes);
        }
    }
    finish(samples, device, nccl, None, notes)
}

/// The file that `-J` writes.
pub(super) fn json(value: &Value, hints: Hints) -> Result<Imported, String> {
    let config = &value["config"];
    let list = |v: &Value| v.as_array().cloned().unwrap_or_default();
    let args: Vec<String> = list(&value["args"])
        .iter()
        .filter_map(|a| a.as_str().map(str::to_owned))
        .collect();
    let program = args.first().cloned().unwrap_or_default();
    let collective = match hints.collective {
        Some(told) => told,
        None => of_program(&program).ok_or_else(|| unknown(&program))?,
    };
    let told = args
        .iter()
        .position(|a| a == "-R" || a == "--local_register")
        .and_then(|at| args.get(at + 1))
        .map(|mode| match mode.as_str() {
            "1" => BufferRegistration::Local,
            "2" => BufferRegistration::Symmetric,
            _ => BufferRegistration::None,
        });
    let devices = list(&config["devices"]);
    let nccl = value["nccl_version"].as_u64().map(version);
    let run = Run {
        collective,
        registration: hints
            .registration
            .or(told)
            .unwrap_or(BufferRegistration::None),
        launch: if config["graph"].as_u64().unwrap_or(0) > 0 {
            LaunchMode::Graph
        } else {
            LaunchMode::Stream
        },
        ranks: u32::try_from(devices.len()).unwrap_or(0),
        implementation: implementation(nccl.as_deref()),
    };
    if run.ranks < 2 {
        return Err(format!(
            "config.devices lists {} devices; a collective needs at least 2",
            devices.len()
        ));
    }
    let mut samples = Vec::new();
    let mut notes = Vec::new();
    for row in list(&value["results"]) {
        let Some(bytes) = row["size"].as_u64() else {
            return Err("a row of results has no size".to_owned());
        };
        for (key, in_place) in [("out_of_place", false), ("in_place", true)] {
            let (time, wrong) = (row[key]["time"].as_f64(), row[key]["nwrong"].as_f64());
            take(&run, bytes, in_place, time, wrong, &mut samples, &mut notes);
        }
    }
    let device = devices
        .first()
        .and_then(|d| d["device_info"].as_str())
        .map(|s| s.trim().to_owned());
    let date = value["start_time"].as_str().map(str::to_owned);
    finish(samples, device, nccl, date, notes)
}

fn implementation(nccl: Option<&str>) -> String {
    format!("nccl {}", nccl.unwrap_or("of unknown version"))
}

fn take(
    run: &Run,
    bytes: u64,
    in_place: bool,
    time: Option<f64>,
    wrong: Option<f64>,
    samples: &mut Vec<Measured>,
    notes: &mut Vec<String>,
) {
    match (time, wrong) {
        (_, Some(wrong)) if wrong > 0.0 => notes.push(format!(
            "{} of {bytes} bytes: {wrong} wrong values, not taken",
            run.collective.name()
        )),
        (Some(us), _) if us > 0.0 && us.is_finite() && bytes > 0 => {
            samples.push(run.sample(bytes, in_place, us));
        }
        _ => {}
    }
}

fn finish(
    samples: Vec<Measured>,
    device: Option<String>,
    nccl: Option<String>,
    date: Option<String>,
    notes: Vec<String>,
) -> Result<Imported, String> {
    if samples.is_empty() {
        return Err("has no row with a time".to_owned());
    }
    Ok(Imported::Samples {
        samples,
        device,
        nccl,
        date,
        notes,
    })
}
