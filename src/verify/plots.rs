//! Two plots in one SVG: predicted over measured, and the error over the measured time.

use super::judge::Verdict;
use crate::failure::Failure;
use plotters::prelude::*;

const SIZE: (u32, u32) = (1100, 520);
const GRAPH: RGBColor = RGBColor(0x1f, 0x5f, 0xa8);
const STREAM: RGBColor = RGBColor(0xc0, 0x5a, 0x1c);

/// The plots.
///
/// # Errors
/// What the drawing library says.
pub fn svg(v: &Verdict) -> Result<String, Failure> {
    let mut out = String::new();
    draw(v, &mut out).map_err(|e| Failure::failed(format!("the plots cannot be drawn: {e}")))?;
    Ok(out)
}

type Drawn = Result<(), Box<dyn std::error::Error>>;

fn draw(v: &Verdict, out: &mut String) -> Drawn {
    let root = SVGBackend::with_string(out, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let (left, right) = root.split_horizontally(SIZE.0 / 2);
    scatter(v, &left)?;
    residuals(v, &right)?;
    root.present()?;
    Ok(())
}

/// A time of an axis, thousands apart.
fn whole(us: &f64) -> String {
    crate::render::number::fixed(*us, if *us < 1.0 { 3 } else { 0 })
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

/// The range of some times, with room on both sides.
fn range(values: impl Iterator<Item = f64> + Clone) -> (f64, f64) {
    let least = values.clone().fold(f64::INFINITY, f64::min).max(1e-3);
    let most = values.fold(least, f64::max);
    (least / 1.5, most * 1.5)
}

fn scatter(v: &Verdict, area: &Area<'_>) -> Drawn {
    let (low, high) = range(v.steps.iter().flat_map(|s| [s.predicted_us, s.measured_us]));
    let mut chart = ChartBuilder::on(area)
        .margin(14)
        .x_label_area_size(42)
        .y_label_area_size(64)
        .caption("Predicted over measured, µs", ("sans-serif", 18))
        .build_cartesian_2d((low..high).log_scale(), (low..high).log_scale())?;
    chart
        .configure_mesh()
        .x_desc("measured, µs")
        .y_desc("predicted, µs")
        .x_label_formatter(&whole)
        .y_label_formatter(&whole)
        .light_line_style(WHITE)
        .draw()?;
    chart.draw_series(LineSeries::new([(low, low), (high, high)], BLACK.mix(0.5)))?;
    for (launch, colour) in [("graph", GRAPH), ("stream", STREAM)] {
        let points = v.steps.iter().filter(|s| s.launch == launch);
        chart.draw_series(points.clone().map(|s| {
            PathElement::new(
                vec![(s.measured_us, s.low_us), (s.measured_us, s.high_us)],
                colour.mix(0.35),
            )
        }))?;
        chart
            .draw_series(
                points.map(|s| Circle::new((s.measured_us, s.predicted_us), 3, colour.filled())),
            )?
            .label(launch)
            .legend(move |(x, y)| Circle::new((x + 8, y), 4, colour.filled()));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .border_style(BLACK.mix(0.3))
        .background_style(WHITE)
        .draw()?;
    Ok(())
}

fn residuals(v: &Verdict, area: &Area<'_>) -> Drawn {
    let (low, high) = range(v.steps.iter().map(|s| s.measured_us));
    let most = v
        .steps
        .iter()
        .map(|s| s.error.abs() * 100.0)
        .fold(5.0, f64::max)
        * 1.15;
    let mut chart = ChartBuilder::on(area)
        .margin(14)
        .x_label_area_size(42)
        .y_label_area_size(64)
        .caption("Error of the prediction, %", ("sans-serif", 18))
        .build_cartesian_2d((low..high).log_scale(), -most..most)?;
    chart
        .configure_mesh()
        .x_desc("measured, µs")
        .y_desc("predicted / measured − 1, %")
        .x_label_formatter(&whole)
        .y_label_formatter(&|percent| format!("{percent:+.0}"))
        .light_line_style(WHITE)
        .draw()?;
    // Where half of the errors are to lie.
    let band = Rectangle::new([(low, -5.0), (high, 5.0)], BLACK.mix(0.06).filled());
    chart.draw_series([band])?;
    chart.draw_series(LineSeries::new([(low, 0.0), (high, 0.0)], BLACK.mix(0.6)))?;
    for (launch, colour) in [("graph", GRAPH), ("stream", STREAM)] {
        let points = v.steps.iter().filter(|s| s.launch == launch);
        chart.draw_series(
            points.map(|s| Circle::new((s.measured_us, s.error * 100.0), 3, colour.filled())),
        )?;
    }
    Ok(())
}
