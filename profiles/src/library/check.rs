//! Checking a folder of profiles.

use super::lookup::{Header, toml_files};
use super::text::{Document, MAX_PROFILE_BYTES, read_limited};
use super::{Library, Profile, figures};
use crate::efficiency::EfficiencyProfile;
use crate::engine::EngineProfile;
use crate::fault::{Fault, Faults};
use crate::gpu::GpuProfile;
use crate::model::ModelProfile;
use crate::overheads::Overheads;
use crate::workload::Workload;
use std::collections::BTreeMap;
use std::path::Path;

impl Library {
    /// Checks every profile of a folder, with the embedded ones as bases of its overlays.
    ///
    /// Returns how many files were checked.
    ///
    /// # Errors
    /// Every fault of every file, with line and column.
    pub fn check(folder: &Path) -> Result<usize, Faults> {
        let shown = folder.display().to_string();
        if !folder.is_dir() {
            return Err(Fault::whole(
                shown,
                "is not a folder; profiles are checked in one that holds models/, gpus/ and so on",
            )
            .into());
        }
        let library = Library::with_folder(folder);
        let mut faults = Vec::new();
        let checked = library.check_kind::<ModelProfile>(folder, &mut faults)
            + library.check_kind::<GpuProfile>(folder, &mut faults)
            + library.check_kind::<Workload>(folder, &mut faults)
            + library.check_kind::<EngineProfile>(folder, &mut faults)
            + figures::check::<EfficiencyProfile>(folder, &mut faults)
            + figures::check::<Overheads>(folder, &mut faults);
        if checked == 0 && faults.is_empty() {
            faults.push(Fault::whole(
                shown,
                "holds no profile; they lie in models/*.toml, gpus/*.toml and so on",
            ));
        }
        Faults::or_ok(faults).map(|()| checked)
    }

    fn check_kind<P: Profile>(&self, folder: &Path, faults: &mut Vec<Fault>) -> usize {
        let paths = match toml_files(&folder.join(P::FOLDER)) {
            Ok(paths) => paths,
            Err(fault) => {
                faults.push(fault);
                return 0;
            }
        };
        // Which file first took a name, in lower case.
        let mut taken: BTreeMap<String, String> = BTreeMap::new();
        for path in &paths {
            let file = path.display().to_string();
            match read_limited(path, MAX_PROFILE_BYTES) {
                Err(fault) => faults.push(fault),
                Ok(text) => self.check_text::<P>(&file, &text, &mut taken, faults),
            }
        }
        paths.len()
    }

    fn check_text<P: Profile>(
        &self,
        file: &str,
        text: &str,
        taken: &mut BTreeMap<String, String>,
        faults: &mut Vec<Fault>,
    ) {
        let document = match Document::parse(file, text) {
            Ok(document) => document,
            Err(fault) => {
                let all = Document::syntax_faults(file, text);
                return faults.extend(if all.is_empty() { vec![fault] } else { all });
            }
        };
        match P::parse(&document, self, 0) {
            Err(_) => {
                faults.extend(
                    document.every_fault(|document| P::parse_alone(document, self), P::validate),
                );
                faults.extend(P::beside(&document));
            }
            Ok(profile) => {
                if let Err(found) = profile.validate() {
                    faults.extend(document.place_all(found).0);
                }
            }
        }
        let Ok(header) = document.read::<Header>() else {
            return;
        };
        for (i, name) in std::iter::once(&header.name)
            .chain(&header.aliases)
            .enumerate()
        {
            let field = match i {
                0 => "name".to_owned(),
                i => format!("aliases[{}]", i - 1),
            };
            match taken.get(&name.to_lowercase()) {
                Some(other) => {
                    let message = format!("is {name:?}, which {other} has taken");
                    faults.push(document.place(Fault::field(field, message)));
                }
                None => {
                    taken.insert(name.to_lowercase(), file.to_owned());
                }
            }
        }
    }
}
