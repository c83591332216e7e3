//! The calibrations that come with parplan.
//!
//! Their terms price every plan of their GPU; most of their samples are only what the terms were fitted
//! from. Those lie in a file of the same name in `samples/`, which is parsed when somebody asks for them.

use super::{Calibration, CalibrationError, Class, Sample};
use crate::fault::Fault;
use crate::gpu::GpuProfile;
use include_dir::{Dir, include_dir};
use serde::{Deserialize, Serialize};

static SHIPPED: Dir<'static> = include_dir!("$CARGO_MANIFEST_DIR/data/calibrations");

/// The folder of the samples that no plan needs, below that of the calibrations.
pub const SAMPLES_FOLDER: &str = "samples";

/// A file of samples.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SampleFile {
    samples: Vec<Sample>,
}

/// Names and texts of the shipped calibrations, in order of name.
pub fn shipped_files() -> impl Iterator<Item = (&'static str, &'static str)> {
    SHIPPED
        .files()
        .filter(|file| file.path().extension().is_some_and(|end| end == "toml"))
        .filter_map(|file| Some((file.path().to_str()?, file.contents_utf8()?)))
}

impl Calibration {
    /// The calibrations that parplan ships for a GPU, in order of file name, each with the samples that
    /// price by themselves; [`Calibration::with_all_samples`] has the others.
    ///
    /// # Errors
    /// An embedded file that does not read, which the tests of this crate rule out.
    pub fn shipped(gpu: &GpuProfile) -> Result<Vec<Calibration>, CalibrationError> {
        let mut out = Vec::new();
        for (file, text) in shipped_files() {
            // Most files are of other GPUs: their names say so.
            if !file.starts_with(&gpu.name) {
                continue;
            }
            let calibration = Calibration::from_toml(file, text)?;
            if calibration.provenance.gpu == gpu.name {
                out.push(calibration);
            }
        }
        Ok(out)
    }

    /// A shipped calibration with every sample that its terms were fitted from; any other, which has
    /// them all, as it is.
    ///
    /// # Errors
    /// An embedded file that does not read, which the tests of this crate rule out.
    pub fn with_all_samples(mut self) -> Result<Calibration, CalibrationError> {
        let is_whole = |sample: &Sample| !Class::of(&sample.experiment).prices_by_sample();
        if self.samples.iter().any(is_whole) {
            return Ok(self);
        }
        let path = format!("{SAMPLES_FOLDER}/{}.toml", self.name);
        let Some(text) = SHIPPED.get_file(&path).and_then(|f| f.contents_utf8()) else {
            return Ok(self);
        };
        let broken = |error: toml::de::Error| {
            CalibrationError::Fault(Fault::whole(&path, error.message().to_owned()))
        };
        self.samples
            .extend(toml::from_str::<SampleFile>(text).map_err(broken)?.samples);
        self.check()
            .map_err(|fault| CalibrationError::Fault(fault.in_file(&path)))?;
        Ok(self)
    }

    /// Takes out the samples that no plan needs, as the text of their file; none where there are none.
    ///
    /// # Errors
    /// A figure that TOML cannot hold.
    pub fn take_fitted_samples(&mut self) -> Result<Option<String>, Fault> {
        let samples = std::mem::take(&mut self.samples);
        let (kept, samples) = samples
            .into_iter()
            .partition(|sample| Class::of(&sample.experiment).prices_by_sample());
        self.samples = kept;
        let file = SampleFile { samples };
        if file.samples.is_empty() {
            return Ok(None);
        }
        toml::to_string(&file)
            .map(Some)
            .map_err(|error| Fault::field("samples", error.to_string()))
    }
}
