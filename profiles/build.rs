//! Has cargo rebuild the crate when a profile is added, which `include_dir!` alone does not.

fn main() {
    println!("cargo::rerun-if-changed=data");
}
