//! Published parameter figures, held against the dimensions.

use crate::model::{ActiveCounts, ModelProfile};

/// A published figure that the dimensions do not reproduce.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{what} computed from the dimensions is {computed}, not the published {printed}")]
pub struct PublishedMismatch {
    /// `total` or `active`.
    pub what: &'static str,
    /// The figure as printed.
    pub printed: String,
    /// Parameters counted from the dimensions, in the way the figure says it counts.
    pub computed: u64,
}

impl ModelProfile {
    /// Total parameters, counted as the published total says it counts.
    ///
    /// `None` when nothing is published.
    pub fn total_as_published(&self) -> Option<u64> {
        let published = self.published.as_ref()?;
        let params = self.params();
        let main = if published.total_counts_embeddings {
            params.total()
        } else {
            params.total_without_embeddings()
        };
        let mtp = if published.total_counts_mtp {
            params.mtp
        } else {
            0
        };
        let routers = self.uncounted_routers();
        Some(main + mtp + published.total_counts_unplanned - routers)
    }

    /// Active parameters, counted as the published figure says it counts.
    ///
    /// `None` when nothing is published.
    pub fn active_as_published(&self) -> Option<u64> {
        let params = self.params();
        let counted = match self.published.as_ref()?.active_counts {
            ActiveCounts::Layers => params.active_in_layers(),
            ActiveCounts::LmHead => params.active(),
            ActiveCounts::Embeddings => {
                params.active_in_layers() + params.embedding + params.lm_head
            }
        };
        Some(counted - self.uncounted_routers())
    }

    /// Routers' weights, where the published figures leave them out.
    fn uncounted_routers(&self) -> u64 {
        if self.published.as_ref().is_none_or(|p| p.counts_routers) {
            return 0;
        }
        self.layers
            .iter()
            .map(|group| u64::from(group.count) * self.layer_params(group).ffn.router)
            .sum()
    }

    /// Published figures that the dimensions do not reproduce to their printed precision; empty
    /// when all agree or nothing is published.
    pub fn published_mismatches(&self) -> Vec<PublishedMismatch> {
        let Some(published) = &self.published else {
            return Vec::new();
        };
        [
            ("total", &published.total, self.total_as_published()),
            ("active", &published.active, self.active_as_published()),
        ]
        .into_iter()
        .filter_map(|(what, printed, computed)| {
            let computed = computed?;
            (!rounds_to(computed, printed)).then(|| PublishedMismatch {
                what,
                printed: printed.clone(),
                computed,
            })
        })
        .collect()
    }
}

/// Whether a count rounds to a figure such as `671B`, `116.8B`, `1.6T` or `70,553,706,496`, to
/// the digits that are printed. A figure that is not a number equals nothing.
pub fn rounds_to(count: u64, printed: &str) -> bool {
    let digits: String = printed.chars().filter(|c| *c != ',').collect();
    let (number, unit) = match digits.chars().last() {
        Some('T') => (&digits[..digits.len() - 1], 1e12),
        Some('B') => (&digits[..digits.len() - 1], 1e9),
        Some('M') => (&digits[..digits.len() - 1], 1e6),
        _ => (digits.as_str(), 1.0),
    };
    let Ok(value) = number.parse::<f64>() else {
        return false;
    };
    let decimals = number.split_once('.').map_or(0, |(_, tail)| tail.len());
    // Half a unit of the last printed place, and a hair for the decimal fraction's own rounding.
    let half = 0.5 * unit / 10f64.powi(decimals.min(18) as i32);
    (count as f64 - value * unit).abs() <= half * (1.0 + 1e-9)
}

#[cfg(test)]
mod tests {
    use super::rounds_to;

    #[test]
    fn figures_match_to_their_printed_digits() {
        assert!(rounds_to(671_026_419_200, "671B"));
        assert!(rounds_to(671_026_419_200, "671.0B"));
        assert!(!rounds_to(671_026_419_200, "671.1B"));
        assert!(rounds_to(1_026_408_232_448, "1T"));
        assert!(rounds_to(1_026_408_232_448, "1.03T"));
        assert!(rounds_to(1_026_408_232_448, "1.0264T"));
        assert!(!rounds_to(1_026_408_232_448, "1.0265T"));
        assert!(rounds_to(70_553_706_496, "70,553,706,496"));
        assert!(!rounds_to(70_553_706_497, "70,553,706,496"));
        assert!(!rounds_to(8, "many"));
        assert!(!rounds_to(8, ""));
    }
}
