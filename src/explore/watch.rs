//! The journal of a running calibration, read again whenever it has grown.

use super::event::Event;
use super::journal::{Point, Progress, Run, Series};
use super::terminal::Watch;
use parplan_planner::calibrate::{predicted_us, summarise};
use parplan_profiles::calibration::{
    Class, DecodeGqaShape, DecodeMlaShape, Experiment, Journal, LaunchMode, Probe, Unit,
};
use parplan_profiles::{EfficiencyProfile, GpuProfile, Library, Overheads};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::mpsc::Sender;
use std::time::{Duration, SystemTime};

/// Between two looks at the file.
const PAUSE: Duration = Duration::from_millis(250);
/// A journal has a line a sample; more than this is another file.
const MOST_BYTES: u64 = 256 * 1024 * 1024;

/// What was seen of a file that is not there.
const GONE: (u64, SystemTime) = (0, SystemTime::UNIX_EPOCH);

/// Reads a journal, and knows what was predicted of its experiments.
#[derive(Debug)]
pub struct Reader {
    path: PathBuf,
    library: Library,
    engine: String,
    seen: Option<(u64, SystemTime)>,
}

impl Reader {
    /// Of a file that need not be there yet; predictions are those for `engine`.
    pub fn new(path: PathBuf, library: Library, engine: String) -> Reader {
        Reader {
            path,
            library,
            engine,
            seen: None,
        }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// News, where the file changed since the last look.
    pub fn look(&mut self) -> Option<Progress> {
        let failed = |why: String| Some(Progress::Failed(why));
        let about = match std::fs::metadata(&self.path) {
            Ok(about) => about,
            // It is said once, and again after it was there.
            Err(error) => {
                let missing = error.kind() == ErrorKind::NotFound;
                return match self.seen.replace(GONE) {
                    Some(GONE) => None,
                    None if missing => failed("is not there yet".to_owned()),
                    Some(_) if missing => {
                        failed("is gone, as it is once the calibration has ended".to_owned())
                    }
                    _ => failed(format!("cannot be read: {error}")),
                };
            }
        };
        let now = (
            about.len(),
            about.modified().unwrap_or(SystemTime::UNIX_EPOCH),
        );
        if self.seen.replace(now) == Some(now) {
            return None;
        }
        if !about.is_file() || about.len() > MOST_BYTES {
            return failed("is no journal of `parplan calibrate`".to_owned());
        }
        match std::fs::read_to_string(&self.path) {
            Ok(text) => Some(self.read(&text)),
            Err(error) => failed(format!("cannot be read: {error}")),
        }
    }

    /// What a journal's text says.
    pub fn read(&self, text: &str) -> Progress {
        let journal = match Journal::read(text) {
            Ok(journal) => journal,
            Err(error) => return Progress::Failed(error.to_string()),
        };
        let gpu = self.library.gpu(&journal.provenance.gpu).ok();
        let figures = gpu.as_ref().and_then(|gpu| {
            let efficiency = self.library.efficiency(&self.engine, gpu).ok()?;
            let overheads = self.library.overheads(&self.engine, gpu).ok()?;
            Some((gpu, efficiency, overheads))
        });
        let ground = figures
            .as_ref()
            .map(|(gpu, efficiency, overheads)| (*gpu, &*efficiency.figures, &*overheads.figures));
        Progress::Read(Box::new(run(&journal, ground)))
    }
}

/// Looks at the file for as long as anyone listens.
pub fn in_background(mut reader: Reader, events: Sender<Event>) {
    std::thread::spawn(move || {
        let _watch = Watch::new("following a calibration", events.clone());
        loop {
            if let Some(progress) = reader.look()
                && events.send(Event::Journal(progress)).is_err()
            {
                return;
            }
            std::thread::sleep(PAUSE);
        }
    });
}

/// What predictions rest on.
type Ground<'a> = Option<(&'a GpuProfile, &'a EfficiencyProfile, &'a Overheads)>;

fn run(journal: &Journal, ground: Ground<'_>) -> Run {
    let mut series: Vec<Series> = Vec::new();
    let mut all: Vec<&Experiment> = journal.experiments.iter().collect();
    // What was measured beyond the list is shown, too.
    for sample in &journal.samples {
        if !all.iter().any(|known| known.same(&sample.experiment)) {
            all.push(&sample.experiment);
        }
    }
    for experiment in &all {
        if experiment.probe.unit() != Unit::Us {
            continue;
        }
        let sample = journal
            .samples
            .iter()
            .rfind(|s| s.experiment.same(experiment));
        let (size, unit) = size(experiment);
        let point = Point {
            size,
            predicted_us: ground.and_then(|(gpu, efficiency, overheads)| {
                predicted_us(experiment, gpu, efficiency, overheads)
            }),
            measured_us: sample.map(|sample| {
                let summary = summarise(&sample.repeats, &sample.anchor_us);
                [summary.value, summary.low, summary.high]
            }),
        };
        let name = name(experiment);
        match series.iter_mut().find(|one| one.name == name) {
            Some(one) => one.points.push(point),
            None => series.push(Series {
                name,
                size: unit,
                points: vec![point],
            }),
        }
    }
    for one in &mut series {
        one.points.sort_by(|a, b| a.size.total_cmp(&b.size));
    }
    let p = &journal.provenance;
    let device = if p.device.is_empty() {
        &p.gpu
    } else {
        &p.device
    };
    Run {
        machine: match p.count {
            0 | 1 => device.clone(),
            count => format!("{count} × {device}"),
        },
        done: all
            .iter()
            .filter(|e| journal.samples.iter().any(|s| s.experiment.same(e)))
            .count(),
        total: all.len(),
        series,
    }
}

/// What one curve holds: experiments of a class, on as many ranks, launched alike.
fn name(experiment: &Experiment) -> String {
    let mut name = Class::of(experiment).to_string();
    if experiment.ranks > 1 {
        name.push_str(&format!(", {} ranks", experiment.ranks));
    }
    let kernels = matches!(experiment.probe, Probe::Kernels { .. });
    if experiment.launch == LaunchMode::Graph && !kernels {
        name.push_str(", graph");
    }
    name
}

/// What a curve is drawn over, and what that counts.
fn size(experiment: &Experiment) -> (f64, &'static str) {
    match experiment.probe {
        Probe::Collective { bytes, .. }
        | Probe::PeerCollective { bytes, .. }
        | Probe::MemoryRead { bytes }
        | Probe::MemoryCopy { bytes } => (bytes as f64, "bytes"),
        Probe::PeerExchange { rows, dim, .. } => (f64::from(rows) * f64::from(dim) * 2.0, "bytes"),
        Probe::MetadataSync { .. } => (f64::from(experiment.ranks), "ranks"),
        Probe::Kernels { nodes } | Probe::GraphMemory { nodes } => (f64::from(nodes), "kernels"),
        Probe::Gemm { m, n, k, .. } => {
            (f64::from(m) * f64::from(n) * f64::from(k), "multiply-adds")
        }
        Probe::Experts(s) => (f64::from(s.tokens), "tokens"),
        Probe::DecodeGqa(DecodeGqaShape {
            requests, context, ..
        })
        | Probe::DecodeMla(DecodeMlaShape {
            requests, context, ..
        }) => (f64::from(requests) * f64::from(context), "cached tokens"),
        Probe::PrefillGqa(s) => (f64::from(s.sequences) * f64::from(s.tokens), "new tokens"),
        Probe::UsableMemory => (1.0, "cards"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parplan_profiles::calibration::{BufferRegistration, CollectiveKind, Measured, Provenance};
    use std::io::Write;

    fn gather(bytes: u64) -> Experiment {
        Experiment {
            ranks: 2,
            launch: LaunchMode::Stream,
            decides: String::new(),
            probe: Probe::Collective {
                collective: CollectiveKind::AllGather,
                bytes,
                registration: BufferRegistration::None,
                in_place: false,
            },
        }
    }

    fn sample(experiment: Experiment, value: f64) -> Measured {
        Measured {
            implementation: "nccl 2.28.3".to_owned(),
            repeats: vec![value; 5],
            anchor_us: Vec::new(),
            remarks: Vec::new(),
            experiment,
        }
    }

    fn head(gpu: &str) -> String {
        let provenance = Provenance {
            gpu: gpu.to_owned(),
            device: "NVIDIA H200".to_owned(),
            count: 2,
            ..Provenance::default()
        };
        let experiments = [
            gather(1 << 20),
            gather(1 << 10),
            Experiment::alone(Probe::UsableMemory, LaunchMode::Stream, ""),
        ];
        Journal::head(&provenance, &experiments).unwrap()
    }

    fn reader(path: PathBuf) -> Reader {
        Reader::new(path, Library::embedded(), "sglang".to_owned())
    }

    fn read(progress: Progress) -> Run {
        match progress {
            Progress::Read(run) => *run,
            Progress::Failed(why) => panic!("{why}"),
        }
    }

    #[test]
    fn measured_points_land_on_predicted_curves() {
        let one = reader("none".into());
        let before = read(one.read(&head("h200")));
        assert_eq!((before.done, before.total), (0, 3));
        assert_eq!(before.machine, "2 × NVIDIA H200");
        let [series] = before.series.as_slice() else {
            panic!("{:?}", before.series);
        };
        assert_eq!(
            (series.name.as_str(), series.size),
            ("all_gather.none, 2 ranks", "bytes")
        );
        assert_eq!(series.points[0].size, 1024.0);
        let predicted = series.points[1].predicted_us.unwrap();
        assert!(predicted > series.points[0].predicted_us.unwrap());

        let text =
            head("h200") + &Journal::entry(&sample(gather(1 << 20), predicted * 1.5)).unwrap();
        let after = read(one.read(&text));
        assert_eq!(after.done, 1);
        assert!((after.series[0].ratio().unwrap() - 1.5).abs() < 1e-9);
    }

    #[test]
    fn a_gpu_without_a_profile_has_no_predictions() {
        let run = read(reader("none".into()).read(&head("some-other-card")));
        assert_eq!(run.series[0].points[0].predicted_us, None);
        assert_eq!(run.series[0].ratio(), None);
    }

    #[test]
    fn a_file_is_read_when_it_grows_and_only_then() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal.jsonl");
        let mut reader = reader(path.clone());
        assert!(matches!(reader.look(), Some(Progress::Failed(_))));
        assert!(reader.look().is_none());
        let mut file = std::fs::File::create(&path).unwrap();
        file.write_all(head("h200").as_bytes()).unwrap();
        assert_eq!(read(reader.look().unwrap()).done, 0);
        assert!(reader.look().is_none());
        let entry = Journal::entry(&sample(gather(1 << 10), 20.0)).unwrap();
        // A line that is half written is left for later.
        file.write_all(&entry.as_bytes()[..20]).unwrap();
        assert_eq!(read(reader.look().unwrap()).done, 0);
        file.write_all(&entry.as_bytes()[20..]).unwrap();
        assert_eq!(read(reader.look().unwrap()).done, 1);
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(reader.look(), Some(Progress::Failed(_))));
        let other = reader.read("{\"no\": \"journal\"}\n");
        assert!(matches!(other, Progress::Failed(_)));
    }
}
