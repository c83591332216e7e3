//! Numbers as people read them.

use parplan_planner::plan::Predicted;

/// At least three significant digits, thousands apart: `0.0123`, `4.56`, `78.9`, `12,345`.
pub fn short(value: f64) -> String {
    if !value.is_finite() {
        return "-".to_owned();
    }
    let magnitude = value.abs();
    let digits = match magnitude {
        m if m >= 99.95 || m == 0.0 => 0,
        m if m >= 9.995 => 1,
        m if m >= 0.9995 => 2,
        m if m >= 0.09995 => 3,
        _ => 4,
    };
    grouped(&format!("{value:.digits$}"))
}

/// A predicted quantity, or a dash where there is none.
pub fn mean(predicted: Option<&Predicted>) -> String {
    predicted.map_or_else(|| "-".to_owned(), |p| short(p.value))
}

/// Its 90 % interval; nothing where there is none.
pub fn interval(predicted: Option<&Predicted>) -> String {
    predicted.map_or_else(String::new, |p| range(p.low, p.high))
}

/// An interval: `41.9 to 58.7`.
pub fn range(low: f64, high: f64) -> String {
    format!("{} to {}", short(low), short(high))
}

/// With so many decimals, thousands apart.
pub fn fixed(value: f64, decimals: usize) -> String {
    if value.is_finite() {
        grouped(&format!("{value:.decimals$}"))
    } else {
        "-".to_owned()
    }
}

/// As it was typed: no more decimals than it has, thousands apart.
pub fn plain(value: f64) -> String {
    let text = format!("{value:.3}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    grouped(text)
}

/// A whole number, thousands apart.
pub fn whole(value: f64) -> String {
    fixed(value, 0)
}

/// A count with its noun: `1 client`, `2,000 clients`.
pub fn counted(count: f64, noun: &str) -> String {
    let plural = if count == 1.0 { "" } else { "s" };
    format!("{} {noun}{plural}", plain(count))
}

/// A share as percent.
pub fn percent(share: f64) -> String {
    fixed(share * 100.0, 1)
}

/// Bytes in GiB.
pub fn gib(bytes: f64) -> String {
    fixed(bytes / (1024.0 * 1024.0 * 1024.0), 2)
}

/// Bytes with the unit that suits them, decimal as link rates are.
pub fn bytes(value: f64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    let mut scaled = value;
    let mut unit = 0;
    while scaled >= 999.5 && unit + 1 < UNITS.len() {
        scaled /= 1000.0;
        unit += 1;
    }
    match unit {
        0 => format!("{} B", whole(scaled)),
        _ => format!("{} {}", short(scaled), UNITS[unit]),
    }
}

/// Puts a comma before every third digit of the whole part.
fn grouped(text: &str) -> String {
    let (sign, rest) = match text.strip_prefix('-') {
        Some(rest) => ("-", rest),
        None => ("", text),
    };
    let (whole, decimals) = match rest.split_once('.') {
        Some((whole, decimals)) => (whole, Some(decimals)),
        None => (rest, None),
    };
    let mut out = sign.to_owned();
    for (i, digit) in whole.chars().enumerate() {
        if i > 0 && (whole.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    if let Some(decimals) = decimals {
        out.push('.');
        out.push_str(decimals);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_significant_digits() {
        for (value, text) in [
            (0.0, "0"),
            (0.01234, "0.0123"),
            (0.999, "0.999"),
            (0.99999, "1.00"),
            (4.5678, "4.57"),
            (9.999, "10.0"),
            (78.94, "78.9"),
            (99.97, "100"),
            (12345.6, "12,346"),
            (-1234.5, "-1,234"),
            (f64::NAN, "-"),
            (f64::INFINITY, "-"),
        ] {
            assert_eq!(short(value), text);
        }
    }

    #[test]
    fn bytes_carry_the_unit_that_suits_them() {
        assert_eq!(bytes(88.0), "88 B");
        assert_eq!(bytes(7_372_800.0), "7.37 MB");
        assert_eq!(bytes(999_600.0), "1.00 MB");
        assert_eq!(gib(150_754_820_096.0), "140.40");
    }

    #[test]
    fn one_thing_has_no_plural() {
        assert_eq!(counted(1.0, "client"), "1 client");
        assert_eq!(counted(0.0, "client"), "0 clients");
        assert_eq!(counted(1.5, "client"), "1.5 clients");
        assert_eq!(counted(2000.0, "client"), "2,000 clients");
    }

    #[test]
    fn what_was_typed_comes_back() {
        assert_eq!(plain(1024.0), "1,024");
        assert_eq!(plain(0.75), "0.75");
        assert_eq!(plain(1e6), "1,000,000");
    }
}
