//! A user's folder: overriding, overlays, and the check of a whole folder.

#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests may fail loudly"
)]

use parplan_profiles::{Dtype, Lengths, Library, LibraryError};
use std::path::{Path, PathBuf};

/// A folder that is gone when the test ends.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("parplan-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).expect("a folder");
        Folder(path)
    }

    fn write(&self, file: &str, text: &str) -> PathBuf {
        let path = self.0.join(file);
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
        std::fs::write(&path, text).expect("written");
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn embedded_text(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("data")
        .join(file);
    std::fs::read_to_string(path).expect("an embedded profile")
}

#[test]
fn a_users_profile_replaces_the_embedded_one() {
    let folder = Folder::new("override");
    let text =
        embedded_text("gpus/h200.toml").replace("memory_mib = 143771", "memory_mib = 140000");
    folder.write("gpus/anything.toml", &text);
    let library = Library::with_folder(&folder.0);
    assert_eq!(library.gpu("H200").expect("a GPU").memory_mib, 140_000);
    assert_eq!(
        library.gpu("NVIDIA H200").expect("a GPU").memory_mib,
        140_000
    );
    assert_eq!(library.gpu("b200").expect("a GPU").memory_mib, 183_359);
    let listed = library.gpus().expect("listed");
    let own: Vec<_> = listed.iter().filter(|one| one.file.is_some()).collect();
    assert_eq!(own.len(), 1);
    assert_eq!(listed.iter().filter(|one| one.name == "h200").count(), 1);
}

#[test]
fn an_overlay_changes_what_it_says_and_keeps_the_rest() {
    let folder = Folder::new("overlay");
    let text = "base = \"qwen3-32b\"\nname = \"my-qwen\"\nkv_dtype = \"fp8\"\n[weights]\n\
        attention = \"fp8\"\ndense_ffn = \"nvfp4\"\nexperts = \"fp8\"\nshared_experts = \"fp8\"\n\
        embedding = \"bf16\"\n";
    folder.write("models/my-qwen.toml", text);
    // One that keeps the name of the profile it is based on, which is the embedded one.
    let same = "base = \"qwen3-8b\"\nname = \"qwen3-8b\"\nmax_position = 131072\n";
    folder.write("models/qwen3-8b.toml", same);
    let library = Library::with_folder(&folder.0);
    let mine = library.model("my-qwen").expect("a model");
    assert_eq!(mine.weights.dense_ffn, Dtype::Nvfp4);
    assert_eq!(mine.kv_dtype, Dtype::Fp8);
    assert_eq!(
        mine.layers,
        library.model("qwen3-32b").expect("a model").layers
    );
    assert_eq!(
        library.model("Qwen3-8B").expect("a model").max_position,
        131_072
    );
    assert_eq!(Library::check(&folder.0), Ok(2));
}

#[test]
fn a_name_comes_before_an_id_that_it_is_short_for() {
    let folder = Folder::new("short");
    let mine = "base = \"qwen3-8b\"\nname = \"aaa\"\nrepository = \"me/qwen3-32b\"\naliases = []\n";
    folder.write("models/aaa.toml", mine);
    let library = Library::with_folder(&folder.0);
    for (named, profile) in [
        ("qwen3-32b", "qwen3-32b"),
        ("me/Qwen3-32B", "aaa"),
        ("Qwen/Qwen3-32B", "qwen3-32b"),
    ] {
        assert_eq!(library.model(named).expect("a model").name, profile);
    }
}

#[test]
fn overlays_that_lead_nowhere_are_refused() {
    let folder = Folder::new("circle");
    folder.write("models/a.toml", "base = \"b\"\nname = \"a\"\n");
    folder.write("models/b.toml", "base = \"a\"\nname = \"b\"\n");
    folder.write("models/c.toml", "name = \"c\"\nbase = \"deepsek-v3\"\n");
    let one = "group = 9\nweights = { attention = \"fp8\", dense_ffn = \"fp8\", experts = \"fp8\", \
        shared_experts = \"fp8\", embedding = \"bf16\" }\n";
    folder.write(
        "models/d.toml",
        &format!("base = \"qwen3-8b\"\nname = \"d\"\n[[group_weights]]\n{one}"),
    );
    let library = Library::with_folder(&folder.0);
    let said = library.model("d").expect_err("refused").to_string();
    assert!(
        said.ends_with("d.toml:4:1: group_weights[0].group is 9; the base has groups 0 to 0"),
        "{said}"
    );
    let said = library.model("a").expect_err("refused").to_string();
    assert!(said.contains("th base in a row"), "{said}");
    let said = library.model("c").expect_err("refused").to_string();
    assert!(
        said.contains("c.toml:2:1: base cannot be used: model `deepsek-v3`"),
        "{said}"
    );
    assert!(said.contains("did you mean deepseek-v3"), "{said}");
}

#[test]
fn a_check_names_every_fault_of_every_file_by_line_and_column() {
    let folder = Folder::new("check");
    let gpu = embedded_text("gpus/h200.toml")
        .replace("sms = 132", "sms = \"many\"")
        .replace("compute_capability = [9, 0]", "compute_capability = [0, 0]")
        .replace("gpus_per_node = 8", "gpus_per_node = 8\ncolour = \"green\"");
    folder.write("gpus/wrong-types.toml", &gpu);
    let gpu = embedded_text("gpus/b200.toml")
        .replace("fp8 = 4.5e15", "fp8 = -4.5e15")
        .replace("sms = 148", "sms = 0");
    folder.write("gpus/wrong-values.toml", &gpu);
    folder.write(
        "gpus/cut.toml",
        "name = \"cut\"\naliases = [\"x\",\nvendor = ",
    );
    folder.write("gpus/empty.toml", "");
    folder.write(
        "gpus/syntax.toml",
        "name = \nsms = 3\nvendor = \"nvidia\"\nlink = }\n",
    );
    let model = embedded_text("models/qwen3-8b.toml")
        .replace("q_heads = 32, kv_heads = 8", "q_heads = 32, kv_heads = 7")
        .replace("total = \"8.2B\"", "total = \"9.2B\"");
    folder.write("models/wrong-heads.toml", &model);
    let engine = embedded_text("engines/vllm.toml").replacen("verified =", "verfied =", 1);
    folder.write("engines/wrong-key.toml", &engine);
    folder.write("efficiency/wrong.toml", "engine = 3\n");
    folder.write(
        "overheads/wrong.toml",
        "engine = \"vllm\"\narchitecture = \"hopper\"\nstep_us = -5.0\nstep = 3.0\n",
    );
    let Err(faults) = Library::check(&folder.0) else {
        panic!("nothing was found");
    };
    let said: Vec<String> = faults
        .to_string()
        .lines()
        .map(|line| line.replace(&format!("{}/", folder.0.display()), ""))
        .collect();
    let has = |start: &str| said.iter().any(|line| line.starts_with(start));
    assert!(
        has("gpus/wrong-types.toml:8:7: invalid type: string \"many\""),
        "{said:#?}"
    );
    assert!(
        has("gpus/wrong-types.toml:12:1: unknown field `colour`"),
        "{said:#?}"
    );
    // What is wrong with the values of a file that cannot be read, too.
    assert!(
        has("gpus/wrong-types.toml:10:1: compute_capability is"),
        "{said:#?}"
    );
    for line in [
        "overheads/wrong.toml:3:1: step_us is -5 us",
        "overheads/wrong.toml:4:1: unknown field `step`",
    ] {
        assert!(has(line), "{said:#?}");
    }
    assert!(
        has("gpus/wrong-values.toml:8:1: sms is 0; it must be from 1 to 16384"),
        "{said:#?}"
    );
    assert!(
        has("gpus/wrong-values.toml:18:1: tensor.fp8 is -4.5e15 FLOP/s;"),
        "{said:#?}"
    );
    assert!(
        has("gpus/cut.toml:3:1: string values must be quoted"),
        "{said:#?}"
    );
    assert!(has("gpus/empty.toml: is empty"), "{said:#?}");
    for line in [1, 4] {
        assert!(has(&format!("gpus/syntax.toml:{line}:")), "{said:#?}");
    }
    assert!(
        has("efficiency/wrong.toml:1:10: invalid type: integer"),
        "{said:#?}"
    );
    let key = |line: &String| line.contains("unknown field `verfied`");
    assert!(said.iter().any(key), "{said:#?}");
    assert!(
        has("models/wrong-heads.toml:24:29: layers[0].attention.q_heads is 32, which kv_heads = 7"),
        "{said:#?}"
    );
    // A broken file does not stand in the way of other profiles.
    let library = Library::with_folder(&folder.0);
    assert!(library.gpu("h100-sxm").is_ok());
    assert!(matches!(library.gpu("cut"), Err(LibraryError::Faults(_))));
}

#[test]
fn two_profiles_of_one_name_are_a_fault() {
    let folder = Folder::new("twice");
    let text = embedded_text("gpus/h20.toml");
    folder.write("gpus/one.toml", &text);
    folder.write("gpus/two.toml", &text);
    let said = Library::check(&folder.0).expect_err("a fault").to_string();
    assert!(
        said.contains("two.toml:3:1: name is \"h20\", which "),
        "{said}"
    );
}

#[test]
fn a_folder_without_profiles_is_not_called_good() {
    let folder = Folder::new("none");
    let said = Library::check(&folder.0).expect_err("a fault").to_string();
    assert!(said.contains("holds no profile"), "{said}");
    let said = Library::check(&folder.0.join("absent"))
        .expect_err("a fault")
        .to_string();
    assert!(said.contains("is not a folder"), "{said}");
}

#[test]
fn a_workload_reads_the_trace_beside_it() {
    let folder = Folder::new("trace");
    folder.write(
        "workloads/mine.csv",
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.9,100,10\n\
         2023-11-16 18:17:04.9,300,30\n",
    );
    let text = "name = \"mine\"\ninput = { kind = \"trace\", file = \"mine.csv\" }\n\
        output = { kind = \"fixed\", tokens = 9 }\nload = { kind = \"rate\", requests_per_s = 2.0 }\n";
    folder.write("workloads/mine.toml", text);
    let library = Library::with_folder(&folder.0);
    let mine = library.workload("mine").expect("a workload");
    assert_eq!(mine.input.mean(), Some(200.0));
    assert_eq!(mine.output, Lengths::Fixed { tokens: 9 });
    folder.write(
        "workloads/mine.toml",
        &text.replace("mine.csv", "absent.csv"),
    );
    let said = Library::check(&folder.0).expect_err("a fault").to_string();
    assert!(said.contains("mine.toml:2:"), "{said}");
    assert!(said.contains("absent.csv: cannot be read"), "{said}");
    // Nor does a trace that is missing hide what else is wrong, of a value or of a type.
    let faulty = text
        .replace("mine.csv", "absent.csv")
        .replace("tokens = 9", "tokens = 0")
        + "prefix_hit = 7.0\n";
    folder.write("workloads/mine.toml", &faulty);
    let said = Library::check(&folder.0).expect_err("faults").to_string();
    for part in ["absent.csv: cannot be read", "output.tokens", "prefix_hit"] {
        assert!(said.contains(part), "{part} is not in: {said}");
    }
    folder.write("workloads/mine.toml", &faulty.replace("7.0", "\"7\""));
    let said = Library::check(&folder.0).expect_err("faults").to_string();
    for part in [
        "absent.csv: cannot be read",
        "output.tokens",
        "mine.toml:5:",
    ] {
        assert!(said.contains(part), "{part} is not in: {said}");
    }
}

#[test]
fn hostile_files_give_one_line_each() {
    let folder = Folder::new("hostile");
    folder.write("gpus/binary.toml", "");
    std::fs::write(folder.0.join("gpus/binary.toml"), b"\xff\xfe\x00").expect("written");
    folder.write("gpus/large.toml", &"#".repeat((1 << 20) + 1));
    folder.write("gpus/deep.toml", &format!("a = {}", "[".repeat(100_000)));
    std::fs::create_dir_all(folder.0.join("gpus/folder.toml")).expect("a folder");
    let Err(faults) = Library::check(&folder.0) else {
        panic!("nothing was found");
    };
    assert_eq!(faults.0.len(), 4, "{faults}");
    for fault in &faults.0 {
        assert!(!fault.to_string().contains('\n'), "{fault}");
    }
}

/// The examples of docs/profiles.md are profiles.
#[test]
fn the_examples_of_the_documentation_are_valid() {
    let folder = Folder::new("docs");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/profiles.md");
    let text = std::fs::read_to_string(path).expect("the documentation");
    let mut blocks = 0;
    for block in text.split("```toml\n").skip(1) {
        let example = block.split("```").next().expect("a block");
        let file = match example.lines().next().expect("a line") {
            line if line.starts_with("base") => "models/example.toml",
            line if line.starts_with("name") => "workloads/example.toml",
            // The others say where they lie.
            line => line.trim_start_matches("# "),
        };
        folder.write(file, example);
        blocks += 1;
    }
    folder.write(
        "workloads/requests.csv",
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.9,100,10\n",
    );
    assert_eq!(blocks, 4);
    assert_eq!(Library::check(&folder.0), Ok(4));
}
