//! The plot of throughput against speed as an SVG file.

use super::planning::{Sweep, Table};
use super::scale::Scale;
use crate::render::{number, ranking};
use parplan_planner::sweep::Point;
use std::fmt::Write;

const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 600.0;
const LEFT: f64 = 90.0;
const RIGHT: f64 = 30.0;
const TOP: f64 = 92.0;
const BOTTOM: f64 = 66.0;
/// Colours of the front and of the chosen configuration.
const FRONT: &str = "#1660a8";
const CHOSEN: &str = "#d07000";

/// Where points land.
struct Frame {
    x: Scale,
    y: Scale,
}

impl Frame {
    fn at(&self, fast: f64, much: f64) -> (f64, f64) {
        (
            LEFT + self.x.share(fast) * (WIDTH - LEFT - RIGHT),
            HEIGHT - BOTTOM - self.y.share(much) * (HEIGHT - TOP - BOTTOM),
        )
    }

    fn of(&self, point: &Point) -> (f64, f64) {
        self.at(point.tokens_per_s_user, point.tokens_per_s_gpu)
    }
}

/// The plot of every curve and their front; the curve of `row` is drawn out.
pub fn plot(table: &Table, sweep: &Sweep, row: usize) -> String {
    let points = || sweep.curves.iter().flat_map(|curve| &curve.points);
    let frame = Frame {
        x: Scale::from_zero(points().map(|point| point.tokens_per_s_user), 8),
        y: Scale::from_zero(points().map(|point| point.tokens_per_s_gpu), 6),
    };
    let front: Vec<(usize, &Point)> = sweep
        .front
        .iter()
        .map(|&(curve, point)| (curve, &sweep.curves[curve].points[point]))
        .collect();
    let mut out = String::new();
    // Writing into a string cannot fail, here and below.
    let _ = write!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
         width=\"{WIDTH}\" height=\"{HEIGHT}\" font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    titles(&mut out, table, sweep, row);
    axes(&mut out, &frame);
    if let Some(limit) = table.resolved.goal.tpot_ms {
        let (x, base) = frame.at(1e3 / limit, 0.0);
        let _ = write!(
            out,
            "<line x1=\"{x:.1}\" y1=\"{TOP}\" x2=\"{x:.1}\" y2=\"{base:.1}\" stroke=\"#b00\" \
             stroke-dasharray=\"5 4\"/>\n<text x=\"{:.1}\" y=\"{:.1}\" fill=\"#b00\">TPOT {} ms\
             </text>\n",
            x + 5.0,
            TOP + 14.0,
            number::plain(limit)
        );
    }
    for point in points() {
        circle(&mut out, frame.of(point), 2, "fill=\"#b9c4cf\"", "");
    }
    let line: Vec<String> = front
        .iter()
        .map(|(_, point)| {
            let (x, y) = frame.of(point);
            format!("{x:.1},{y:.1}")
        })
        .collect();
    let _ = writeln!(
        out,
        "<polyline points=\"{}\" fill=\"none\" stroke=\"{FRONT}\" stroke-width=\"1.5\"/>",
        line.join(" ")
    );
    for (curve, point) in &front {
        let title = format!(
            "{}, {}",
            ranking::switch_words(&sweep.curves[*curve].choice),
            number::counted(point.clients, "client")
        );
        let fill = format!("fill=\"{FRONT}\"");
        circle(&mut out, frame.of(point), 4, &fill, &title);
    }
    if let Some(curve) = sweep.curves.get(row) {
        for point in &curve.points {
            let planned = point.clients == table.resolved.ask.traffic.concurrency;
            let (radius, wide) = if planned { (9, 3) } else { (5, 1) };
            let stroke = format!("fill=\"none\" stroke=\"{CHOSEN}\" stroke-width=\"{wide}\"");
            circle(&mut out, frame.of(point), radius, &stroke, "");
        }
    }
    labels(&mut out, sweep, &front, &frame);
    out.push_str("</svg>\n");
    out
}

fn circle(out: &mut String, (x, y): (f64, f64), radius: u32, style: &str, title: &str) {
    let _ = match title {
        "" => writeln!(
            out,
            "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{radius}\" {style}/>"
        ),
        title => writeln!(
            out,
            "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{radius}\" {style}><title>{}</title></circle>",
            escaped(title)
        ),
    };
}

/// What is plotted, and which configuration is drawn out.
fn titles(out: &mut String, table: &Table, sweep: &Sweep, row: usize) {
    let ask = &table.resolved.ask;
    let traffic = &ask.traffic;
    let title = format!(
        "{} on {} {}, {} {}",
        ask.model.name, table.resolved.space.gpus, ask.gpu.name, ask.rules.name, ask.rules.version
    );
    let about = format!(
        "{} in, {} out on average; every layout at 1, 2, 4 … clients",
        number::counted(traffic.isl.round(), "token"),
        number::whole(traffic.osl),
    );
    let _ = write!(
        out,
        "<text x=\"{LEFT}\" y=\"30\" font-size=\"18\">{}</text>\n\
         <text x=\"{LEFT}\" y=\"52\" fill=\"#555\">{}</text>\n",
        escaped(&title),
        escaped(&about)
    );
    if let Some(curve) = sweep.curves.get(row) {
        let _ = writeln!(
            out,
            "<text x=\"{LEFT}\" y=\"72\" fill=\"{CHOSEN}\">circled: {}; the large circle is {}</text>",
            escaped(&ranking::choice_words(&curve.choice)),
            crate::render::plan::load_words(traffic)
        );
    }
}

fn axes(out: &mut String, frame: &Frame) {
    for tick in &frame.x.ticks {
        let (x, base) = frame.at(*tick, 0.0);
        let _ = write!(
            out,
            "<line x1=\"{x:.1}\" y1=\"{TOP}\" x2=\"{x:.1}\" y2=\"{base:.1}\" stroke=\"#e5e5e5\"/>\n\
             <text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>\n",
            base + 20.0,
            number::plain(*tick)
        );
    }
    for tick in &frame.y.ticks {
        let (start, y) = frame.at(0.0, *tick);
        let _ = write!(
            out,
            "<line x1=\"{start:.1}\" y1=\"{y:.1}\" x2=\"{:.1}\" y2=\"{y:.1}\" stroke=\"#e5e5e5\"/>\n\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\n",
            WIDTH - RIGHT,
            start - 8.0,
            y + 4.5,
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
}

/// Names beside the front where another layout takes the lead, as long as they do not fall on each
/// other.
fn labels(out: &mut String, sweep: &Sweep, front: &[(usize, &Point)], frame: &Frame) {
    const LINE: f64 = 15.0;
    const LETTER: f64 = 6.4;
    let mut taken: Vec<(f64, f64, f64)> = Vec::new();
    let mut before = None;
    for &(curve, point) in front {
        if before.replace(curve) == Some(curve) {
            continue;
        }
        let words = ranking::switch_words(&sweep.curves[curve].choice);
        let (px, py) = frame.of(point);
        let width = words.chars().count() as f64 * LETTER;
        let x = (px + 9.0).min(WIDTH - 8.0 - width).max(8.0);
        // A name that had to give way to the edge goes above the line, too.
        let y = py - if x < px { 22.0 } else { 8.0 };
        let clear = taken
            .iter()
            .all(|(tx, ty, tw)| (ty - y).abs() > LINE || x > tx + tw || x + width < *tx);
        if clear && y > TOP {
            taken.push((x, y, width));
            let _ = writeln!(
                out,
                "<text x=\"{x:.1}\" y=\"{y:.1}\" font-size=\"12\" fill=\"{FRONT}\">{}</text>",
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
