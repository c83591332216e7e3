#![allow(clippy::unwrap_used)]

use super::*;
use crate::dtype::Dtype;

fn sample() -> Sample {
    Sample {
        implementation: "cublaslt 13.1".into(),
        unit: Unit::Us,
        value: 12.5,
        low: 12.0,
        high: 13.0,
        repeats: vec![12.4, 12.5, 99.0],
        anchor_us: vec![3.0, 3.0, 3.1],
        outliers: vec![2],
        remarks: Vec::new(),
        experiment: Experiment::alone(
            Probe::Gemm {
                m: 64,
                n: 4096,
                k: 4096,
                weights: Dtype::Bf16,
            },
            LaunchMode::Graph,
            "dense products",
        ),
    }
}

fn measured() -> Measured {
    let s = sample();
    Measured {
        experiment: s.experiment,
        implementation: s.implementation,
        repeats: s.repeats,
        anchor_us: s.anchor_us,
        remarks: s.remarks,
    }
}

fn calibration() -> Calibration {
    Calibration {
        schema: SCHEMA,
        name: "h200-test".into(),
        provenance: Provenance {
            gpu: "h200".into(),
            device: "NVIDIA H200".into(),
            count: 1,
            ..Provenance::default()
        },
        warnings: Vec::new(),
        terms: vec![Term {
            class: Class::Gemm(Dtype::Bf16),
            implementation: "cublaslt 13.1".into(),
            ranks: vec![1],
            samples: 1,
            residual: 0.02,
            leave_one_out: Errors {
                median: 0.02,
                p90: 0.05,
                sigma: 0.03,
            },
            before: None,
            parameters: vec![Parameter {
                name: "base_us".into(),
                value: 2.0,
                low: 1.0,
                high: 3.0,
                assumed: false,
            }],
            range: vec![Range {
                quantity: "m".into(),
                least: 1.0,
                most: 4096.0,
            }],
        }],
        samples: vec![sample()],
    }
}

#[test]
fn what_is_written_reads_back() {
    let text = calibration().to_toml().unwrap();
    assert_eq!(
        Calibration::from_toml("x.toml", &text).unwrap(),
        calibration()
    );
}

#[test]
fn every_class_reads_its_own_name() {
    let mut classes = vec![
        Class::PeerOneShot,
        Class::PeerTwoShot,
        Class::PeerAllGather,
        Class::Sync(SyncWay::DeviceAllReduce),
        Class::Launch,
        Class::GraphNode,
        Class::MemoryRead,
        Class::MemoryCopy,
        Class::Gemm(Dtype::Fp8Block),
        Class::Experts(Dtype::Bf16),
        Class::DecodeGqa(Dtype::Fp8),
        Class::DecodeMla(Dtype::Bf16),
        Class::PrefillGqa(Dtype::Bf16),
        Class::GraphMemory,
        Class::UsableMemory,
    ];
    for kind in CollectiveKind::ALL {
        classes.push(Class::Collective(kind, BufferRegistration::Symmetric));
    }
    for class in classes {
        assert_eq!(class.to_string().parse::<Class>().unwrap(), class);
    }
    assert!("gemm.bf17".parse::<Class>().is_err());
}

#[test]
fn other_schemas_and_broken_texts_are_refused_in_words() {
    let text = calibration().to_toml().unwrap();
    let refused = |text: &str| {
        Calibration::from_toml("c.toml", text)
            .unwrap_err()
            .to_string()
    };
    let older = refused(&text.replace("schema = 1", "schema = 0"));
    assert!(
        older.contains("schema 0") && older.contains("measure again"),
        "{older}"
    );
    let newer = refused(&text.replace("schema = 1", "schema = 7"));
    assert!(
        newer.contains("schema 7") && newer.contains("newer"),
        "{newer}"
    );
    let none = refused("name = \"x\"\n");
    assert!(none.contains("no `schema`"), "{none}");
    let half = refused(&text[..text.len() / 2]);
    assert!(half.starts_with("c.toml:"), "{half}");
    let wrong = refused(&text.replace("value = 12.5", "value = -12.5"));
    assert!(
        wrong.contains("samples[0]") && wrong.contains("-12.5"),
        "{wrong}"
    );
    let field = refused(&text.replace("residual = ", "residuum = "));
    assert!(field.contains("residuum"), "{field}");
}

#[test]
fn a_calibration_of_another_gpu_is_refused() {
    let library = crate::Library::embedded();
    let file = "c.toml";
    let c = calibration();
    assert!(c.is_for(file, &library.gpu("h200").unwrap()).is_ok());
    let e = c
        .is_for(file, &library.gpu("h100-sxm").unwrap())
        .unwrap_err()
        .to_string();
    assert!(
        e.contains("h200") && e.contains("h100-sxm") && e.contains(file),
        "{e}"
    );
}

#[test]
fn a_torn_last_line_costs_that_sample_and_no_other() {
    let p = calibration().provenance;
    let mut text = Journal::head(&p, &[sample().experiment]).unwrap();
    for _ in 0..3 {
        text.push_str(&Journal::entry(&measured()).unwrap());
    }
    let whole = text.len();
    text.push_str(&Journal::entry(&measured()).unwrap()[..40]);
    let read = Journal::read(&text).unwrap();
    assert_eq!((read.samples.len(), read.whole_bytes), (3, whole));
    assert_eq!(read.provenance, p);
    // Damage in the middle is not the work of a kill.
    let damaged = text.replacen("\"implementation\"", "\"implementat\u{0}on\"", 1);
    let e = Journal::read(&damaged).unwrap_err().to_string();
    assert!(e.contains("line 2"), "{e}");
    assert_eq!(Journal::read("half a li").unwrap_err(), JournalError::Empty);
    let older = text.replacen("\"journal\":1", "\"journal\":0", 1);
    assert_eq!(Journal::read(&older).unwrap_err(), JournalError::Schema(0));
}

#[test]
fn every_shipped_calibration_reads_and_is_of_a_known_gpu() {
    let library = crate::Library::embedded();
    for (file, text) in shipped_files() {
        let c = Calibration::from_toml(file, text).unwrap();
        let gpu = library.gpu(&c.provenance.gpu).unwrap();
        assert!(file.starts_with(&gpu.name), "{file}");
        assert!(
            !c.provenance.date.is_empty() && !c.terms.is_empty(),
            "{file}"
        );
    }
}

#[test]
fn every_shipped_term_has_the_samples_that_it_was_fitted_from() {
    for (file, text) in shipped_files() {
        let mut c = Calibration::from_toml(file, text).unwrap();
        assert_eq!(c.name, file.trim_end_matches(".toml"));
        assert_eq!(
            c.take_fitted_samples().unwrap(),
            None,
            "{file}: run 'cargo xtask calibrations'"
        );
        let c = c.with_all_samples().unwrap();
        for term in &c.terms {
            let own = |s: &&Sample| Class::of(&s.experiment) == term.class;
            let found = c.samples.iter().filter(own).count();
            assert!(found >= term.samples as usize, "{file}: {}", term.class);
        }
    }
}

#[test]
fn samples_that_no_plan_needs_are_taken_out_and_read_back() {
    let mut c = calibration();
    let mut products = sample();
    products.experiment.probe = Probe::Gemm {
        m: 64,
        n: 4096,
        k: 4096,
        weights: Dtype::Fp8,
    };
    c.samples.push(products.clone());
    let text = c.take_fitted_samples().unwrap().unwrap();
    assert_eq!(c.samples, vec![sample()]);
    assert!(text.starts_with("[[samples]]") && text.contains("fp8"));
    // Of a calibration that is not shipped there are no other samples.
    assert_eq!(c.clone().with_all_samples().unwrap(), c);
}
