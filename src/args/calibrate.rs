//! Options of `calibrate` and `import`.

use super::values::named;
use crate::calibration::measure::Libraries;
use clap::Args;
use parplan_executor::jobs::Backend;
use parplan_profiles::calibration::{BufferRegistration, CollectiveKind};
use std::path::PathBuf;

/// What measures: the peer backend has no collectives to calibrate.
const BACKENDS: [(&str, Backend); 2] = [("cpu", Backend::Cpu), ("nccl", Backend::Nccl)];

/// `parplan calibrate`
#[derive(Debug, Clone, Args)]
pub struct CalibrateArgs {
    /// What is measured: cpu, processes over TCP, or nccl, GPUs with NCCL between them
    /// [default: nccl where there is a GPU, else cpu]
    #[arg(long, value_parser = named(BACKENDS))]
    pub backend: Option<Backend>,
    /// Ranks that are measured together [default: all GPUs; 2 on the CPU]
    #[arg(long, value_name = "N")]
    pub ranks: Option<u32>,
    /// Profile of the GPU [default: the one that knows the driver's name for it]
    #[arg(long, value_name = "NAME")]
    pub gpu: Option<String>,
    /// Time for measuring, such as 90s or 4m [default: 4m; 45s on the CPU]
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub budget: Option<f64>,
    /// The calibration to write [default: GPU-xRANKS-DATE.toml in `calibrations` of your profiles]
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Go on with a run that was interrupted: at most the sample that was being measured is lost
    #[arg(long)]
    pub resume: bool,
    /// Only these classes, such as gemm,all_gather (the beginning of their names)
    #[arg(long, value_name = "CLASS", value_delimiter = ',')]
    pub only: Vec<String>,
    /// libnccl.so.2, its folder, or a Python environment that has it
    #[arg(long, value_name = "PATH")]
    pub nccl_path: Option<PathBuf>,
    /// libcublasLt.so.13 or .12, its folder, or a Python environment that has it
    #[arg(long, value_name = "PATH")]
    pub cublas_path: Option<PathBuf>,
    /// Folder of your own profiles [default: parplan/profiles in your configuration folder]
    #[arg(long, value_name = "DIR", env = crate::ask::PROFILES_VARIABLE)]
    pub profiles: Option<PathBuf>,
    /// Confidence at which a question of --for counts as settled
    #[arg(long, value_name = "SHARE", default_value_t = 0.9, value_parser = confidence)]
    pub confidence: f64,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Everything after it is what you would give to `recommend`: only experiments that could change
    /// that ranking are run, best first, until it is settled. Must come last
    #[arg(
        long = "for",
        value_name = "OPTIONS OF RECOMMEND",
        num_args = 1..,
        allow_hyphen_values = true
    )]
    pub question: Option<Vec<String>>,
}

impl CalibrateArgs {
    /// Libraries that were named.
    pub fn libraries(&self) -> Libraries<'_> {
        Libraries {
            nccl: self.nccl_path.as_deref(),
            cublas: self.cublas_path.as_deref(),
        }
    }
}

/// `parplan verify`
#[derive(Debug, Clone, Args)]
pub struct VerifyArgs {
    /// Where stacks run [default: nccl where there is a GPU, else cpu]
    #[arg(long, value_parser = named(BACKENDS))]
    pub backend: Option<Backend>,
    /// Ranks: 1, 2, 4 or 8 [default: 2 where there are two GPUs, else 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=8))]
    pub ranks: Option<u32>,
    /// Steps to compare, at least: workloads run in all of their configurations
    #[arg(long, value_name = "N", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub steps: u32,
    /// Draws models, layouts, batches and contexts
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Median error, in percent, above which the exit code is 1
    #[arg(long, value_name = "PERCENT", default_value_t = 5.0, value_parser = percent)]
    pub max_error: f64,
    /// Models to draw from [default: GQA and MLA models, dense and with experts]
    #[arg(long = "model", value_name = "NAME", value_delimiter = ',')]
    pub models: Vec<String>,
    /// Seconds after which no further stack begins
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "5m")]
    pub budget: f64,
    /// Timed steps, of which the median counts
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u32).range(3..))]
    pub repeats: u32,
    /// Profile of the GPU [default: the one that knows the driver's name for it]
    #[arg(long, value_name = "NAME")]
    pub gpu: Option<String>,
    /// A calibration to predict with, or none [default: those that plans would use]
    #[arg(long, value_name = "FILE|none")]
    pub calibration: Option<String>,
    /// Judge what earlier runs kept (by --keep or --json) instead of measuring: by another calibration,
    /// or several runs together
    #[arg(long, value_name = "FILE", num_args = 1..)]
    pub measured: Vec<PathBuf>,
    /// Keep the measurements in this file, beside what is printed
    #[arg(long, value_name = "FILE")]
    pub keep: Option<PathBuf>,
    /// Write plots and every step to this page
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Write the plots to this file
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// libnccl.so.2, its folder, or a Python environment that has it
    #[arg(long, value_name = "PATH")]
    pub nccl_path: Option<PathBuf>,
    /// libcublasLt.so.13 or .12, its folder, or a Python environment that has it
    #[arg(long, value_name = "PATH")]
    pub cublas_path: Option<PathBuf>,
    /// Folder of your own profiles [default: parplan/profiles in your configuration folder]
    #[arg(long, value_name = "DIR", env = crate::ask::PROFILES_VARIABLE)]
    pub profiles: Option<PathBuf>,
}

/// A share in percent.
fn percent(text: &str) -> Result<f64, String> {
    match text.trim_end_matches('%').parse::<f64>() {
        Ok(p) if p > 0.0 && p.is_finite() => Ok(p),
        _ => Err("it must be a percentage above 0, such as 5 or 5%".to_owned()),
    }
}

/// `parplan import`
#[derive(Debug, Clone, Args)]
pub struct ImportArgs {
    /// Files of nccl-tests (text, or JSON by -J), `parplan run collectives|sync --json`, SGLang
    /// bench_serving, `vllm bench serve` or AIPerf; or one calibration (TOML), whose samples are
    /// fitted again
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// Where to keep it: a calibration, or observed runs [default: only shown]
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Profile of the GPU that ran collectives [default: by the device's name in the files]
    #[arg(long, value_name = "NAME")]
    pub gpu: Option<String>,
    /// When collectives were measured [default: as the files say]
    #[arg(long, value_name = "DATE")]
    pub date: Option<String>,
    /// How the GPUs are joined, in words
    #[arg(long, value_name = "TEXT")]
    pub topology: Option<String>,
    /// The collective of a table that does not name it
    #[arg(long, value_parser = named(CollectiveKind::ALL.map(|kind| (kind.name(), kind))))]
    pub collective: Option<CollectiveKind>,
    /// Registration of the buffers (nccl-tests -R), which a table does not repeat [default: none]
    #[arg(long, value_parser = named(BufferRegistration::ALL.map(|of| (of.name(), of))))]
    pub registration: Option<BufferRegistration>,
    /// Folder of your own profiles [default: parplan/profiles in your configuration folder]
    #[arg(long, value_name = "DIR", env = crate::ask::PROFILES_VARIABLE)]
    pub profiles: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `90s`, `4m`, `1.5h`, or seconds.
fn duration(text: &str) -> Result<f64, String> {
    let text = text.trim();
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let scale = match &text[digits.len()..] {
        "" | "s" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        other => return Err(format!("'{other}' is no unit of time; give s, m or h")),
    };
    match digits.trim().parse::<f64>() {
        Ok(n) if n.is_finite() && n > 0.0 && n * scale <= 86_400.0 => Ok(n * scale),
        _ => Err("it must be a time above 0 and up to 24h, such as 90s or 4m".to_owned()),
    }
}

fn confidence(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(p) if (0.5..1.0).contains(&p) => Ok(p),
        _ => Err("it must be a probability from 0.5 to below 1, such as 0.9".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units() {
        assert_eq!(duration("4m"), Ok(240.0));
        assert_eq!(duration("90"), Ok(90.0));
        assert_eq!(duration(" 1.5h"), Ok(5400.0));
        for wrong in ["", "m", "-1s", "4 days", "1e9h", "nan"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }
}
