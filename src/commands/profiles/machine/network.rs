//! The network of this machine, as the kernel lists its RDMA ports.

use std::path::Path;

/// Bytes a second and direction that the RDMA ports of this machine give each of `gpus` GPUs, with
/// the ports in words; none where there is no active port.
pub(super) fn per_gpu(gpus: u32) -> Option<(f64, String)> {
    of_ports(Path::new("/sys/class/infiniband"), gpus)
}

fn of_ports(folder: &Path, gpus: u32) -> Option<(f64, String)> {
    let mut gigabits = Vec::new();
    for device in std::fs::read_dir(folder).ok()?.flatten() {
        let Ok(ports) = std::fs::read_dir(device.path().join("ports")) else {
            continue;
        };
        for port in ports.flatten() {
            let read = |file: &str| std::fs::read_to_string(port.path().join(file)).ok();
            let active = read("state").is_some_and(|state| state.contains("ACTIVE"));
            let rate = read("rate").and_then(|rate| rate_of(&rate));
            if let Some(rate) = rate.filter(|_| active) {
                gigabits.push(rate);
            }
        }
    }
    let sum: f64 = gigabits.iter().sum();
    if sum <= 0.0 || gpus == 0 {
        return None;
    }
    let words = format!(
        "{} active RDMA ports of {sum} Gb/s together, over {gpus} GPUs (/sys/class/infiniband)",
        gigabits.len()
    );
    Some((sum * 1e9 / 8.0 / f64::from(gpus), words))
}

/// Gb/s of `400 Gb/sec (4X NDR)`.
fn rate_of(text: &str) -> Option<f64> {
    let rate: f64 = text.split_whitespace().next()?.parse().ok()?;
    (rate.is_finite() && rate > 0.0).then_some(rate)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn active_ports_are_shared_by_the_gpus() {
        let root = tempfile::tempdir().unwrap();
        for (device, state, rate) in [
            ("mlx5_0", "4: ACTIVE\n", "400 Gb/sec (4X NDR)\n"),
            ("mlx5_1", "4: ACTIVE\n", "400 Gb/sec (4X NDR)\n"),
            ("mlx5_2", "1: DOWN\n", "100 Gb/sec (4X EDR)\n"),
            ("mlx5_3", "4: ACTIVE\n", "broken\n"),
        ] {
            let port = root.path().join(device).join("ports/1");
            fs::create_dir_all(&port).unwrap();
            fs::write(port.join("state"), state).unwrap();
            fs::write(port.join("rate"), rate).unwrap();
        }
        let (bytes, words) = of_ports(root.path(), 8).unwrap();
        assert_eq!(bytes, 800e9 / 8.0 / 8.0);
        assert!(
            words.starts_with("2 active RDMA ports of 800 Gb/s"),
            "{words}"
        );
        assert_eq!(of_ports(&root.path().join("absent"), 8), None);
        assert_eq!(of_ports(root.path(), 0), None);
    }
}
