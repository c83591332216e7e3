//! The plot of throughput against speed as an SVG file.

use super::planning::{Table, place};
use super::scale::Scale;
use crate::render::{number, ranking};
use std::fmt::Write;

const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 600.0;
const LEFT: f64 = 90.0;
const RIGHT: f64 = 30.0;
const TOP: f64 = 76.0;
const BOTTOM: f64 = 66.0;
/// Labels of the front that are printed.
const LABELS: usize = 6;

/// The plot; `row` is marked.
pub fn plot(table: &Table, row: Option<usize>) -> String {
    let ask = &table.resolved.ask;
    let places: Vec<(f64, f64)> = table.answer.ranked.iter().map(place).collect();
    let x = Scale::from_zero(places.iter().map(|place| place.0), 8);
    let y = Scale::from_zero(places.iter().map(|place| place.1), 6);
    let at = |(fast, much): (f64, f64)| {
        (
            LEFT + x.share(fast) * (WIDTH - LEFT - RIGHT),
            HEIGHT - BOTTOM - y.share(much) * (HEIGHT - TOP - BOTTOM),
        )
    };
    let mut out = String::new();
    let title = format!(
        "{} on {} {}, {} {}",
        ask.model.name, table.resolved.space.gpus, ask.gpu.name, ask.rules.name, ask.rules.version
    );
    let traffic = &ask.traffic;
    let about = format!(
        "{} in, {} out on average; {}",
        number::counted(traffic.isl.round(), "token"),
        number::whole(traffic.osl),
        number::counted(traffic.concurrency, "client"),
    );
    // Writing into a string cannot fail.
    let _ = write!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
         width=\"{WIDTH}\" height=\"{HEIGHT}\" font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"{LEFT}\" y=\"30\" font-size=\"18\">{}</text>\n\
         <text x=\"{LEFT}\" y=\"52\" fill=\"#555\">{}</text>\n",
        escaped(&title),
        escaped(&about)
    );
    for tick in &x.ticks {
        let (px, base) = at((*tick, 0.0));
        let _ = write!(
            out,
            "<line x1=\"{px:.1}\" y1=\"{TOP}\" x2=\"{px:.1}\" y2=\"{base:.1}\" stroke=\"#e5e5e5\"/>\n\
             <text x=\"{px:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>\n",
            base + 20.0,
            number::plain(*tick)
        );
    }
    for tick in &y.ticks {
        let (start, py) = at((0.0, *tick));
        let _ = write!(
            out,
            "<line x1=\"{start:.1}\" y1=\"{py:.1}\" x2=\"{:.1}\" y2=\"{py:.1}\" stroke=\"#e5e5e5\"/>\n\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\n",
            WIDTH - RIGHT,
            start - 8.0,
            py + 4.5,
            number::plain(*tick)
        );
    }
    let _ = write!(
        out,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">speed of one user, tokens/s</text>\n\
         <text transform=\"translate(24 {:.1}) rotate(-90)\" text-anchor=\"middle\">throughput of a \
         GPU, output tokens/s</text>\n",
        (LEFT + WIDTH - RIGHT) / 2.0,
        HEIGHT - 18.0,
        (TOP + HEIGHT - BOTTOM) / 2.0
    );
    if let Some(limit) = table.resolved.goal.tpot_ms {
        let (px, base) = at((1e3 / limit, 0.0));
        let _ = write!(
            out,
            "<line x1=\"{px:.1}\" y1=\"{TOP}\" x2=\"{px:.1}\" y2=\"{base:.1}\" stroke=\"#b00\" \
             stroke-dasharray=\"5 4\"/>\n<text x=\"{:.1}\" y=\"{:.1}\" fill=\"#b00\">TPOT {} ms</text>\n",
            px + 5.0,
            TOP + 14.0,
            number::plain(limit)
        );
    }
    for spot in places
        .iter()
        .enumerate()
        .filter(|(i, _)| !table.front.contains(i))
    {
        let (px, py) = at(*spot.1);
        let _ = writeln!(
            out,
            "<circle cx=\"{px:.1}\" cy=\"{py:.1}\" r=\"3\" fill=\"#9ab\"/>"
        );
    }
    let line: Vec<String> = table
        .front
        .iter()
        .map(|&row| {
            let (px, py) = at(places[row]);
            format!("{px:.1},{py:.1}")
        })
        .collect();
    let _ = writeln!(
        out,
        "<polyline points=\"{}\" fill=\"none\" stroke=\"#1660a8\" stroke-width=\"1.5\"/>",
        line.join(" ")
    );
    for &front in &table.front {
        let (px, py) = at(places[front]);
        let _ = writeln!(
            out,
            "<circle cx=\"{px:.1}\" cy=\"{py:.1}\" r=\"5\" fill=\"#1660a8\"><title>{}</title></circle>",
            escaped(&ranking::choice_words(&table.answer.ranked[front].choice))
        );
    }
    labels(&mut out, table, &places, at);
    if let Some(row) = row.filter(|row| *row < places.len()) {
        let (px, py) = at(places[row]);
        let _ = writeln!(
            out,
            "<circle cx=\"{px:.1}\" cy=\"{py:.1}\" r=\"9\" fill=\"none\" stroke=\"#d07000\" \
             stroke-width=\"2.5\"/>"
        );
    }
    out.push_str("</svg>\n");
    out
}

/// Words beside some configurations of the front, where they do not fall on each other.
fn labels(
    out: &mut String,
    table: &Table,
    places: &[(f64, f64)],
    at: impl Fn((f64, f64)) -> (f64, f64),
) {
    const LINE: f64 = 16.0;
    const LETTER: f64 = 6.6;
    let mut taken: Vec<(f64, f64, f64)> = Vec::new();
    let every = table.front.len().div_ceil(LABELS).max(1);
    for &row in table.front.iter().step_by(every) {
        let words = ranking::choice_words(&table.answer.ranked[row].choice);
        let (px, py) = at(places[row]);
        let width = words.chars().count() as f64 * LETTER;
        let x = (px + 9.0).min(WIDTH - 8.0 - width).max(8.0);
        let y = py - 8.0;
        let clear = taken
            .iter()
            .all(|(tx, ty, tw)| (ty - y).abs() > LINE || x > tx + tw || x + width < *tx);
        if clear && y > TOP {
            taken.push((x, y, width));
            let _ = writeln!(
                out,
                "<text x=\"{x:.1}\" y=\"{y:.1}\" font-size=\"12\" fill=\"#1660a8\">{}</text>",
                escaped(&words)
            );
        }
    }
}

/// Text as XML holds it; what XML cannot hold becomes a question mark.
fn escaped(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => out.push('?'),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::escaped;

    #[test]
    fn no_name_breaks_out_of_its_text() {
        assert_eq!(
            escaped("a</text><script>\"&\u{1b}"),
            "a&lt;/text&gt;&lt;script&gt;&quot;&amp;?"
        );
    }
}
