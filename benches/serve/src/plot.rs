//! A report as a picture.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use plotters::{coord::Shift, prelude::*};

use crate::report::{Report, Sample, percentile};

/// Why there is no picture.
#[derive(Debug, thiserror::Error)]
pub enum PlotError {
    /// It could not be drawn.
    #[error("the plot could not be drawn: {0}")]
    Draw(String),
    /// There is nothing to draw.
    #[error("the server computed no step meanwhile")]
    NoSteps,
    /// It could not be written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn = Result<(), Box<dyn std::error::Error>>;

const SIZE: (u32, u32) = (1500, 480);
const LINE: RGBColor = RGBColor(0, 114, 178);
const MARK: RGBColor = RGBColor(213, 94, 0);
/// Points of a line: more are not seen.
const POINTS: usize = 400;

/// Draws a report as SVG: which part of all requests had their first token, the next token,
/// and their last within a time.
///
/// # Errors
/// A file that cannot be written.
pub fn plot(report: &Report, path: &Path) -> Result<(), PlotError> {
    let mut svg = String::new();
    draw(report, &mut svg).map_err(|error| PlotError::Draw(error.to_string()))?;
    fs::write(path, svg).map_err(|source| PlotError::Io { path: path.to_owned(), source })
}

fn draw(report: &Report, svg: &mut String) -> Drawn {
    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let title = format!(
        "{}: {} requests, {:.1} output tokens/s",
        report.model, report.completed, report.output_throughput
    );
    let root = root.titled(&title, ("sans-serif", 20))?;
    let areas = root.split_evenly((1, 3));
    let samples = &report.samples.of_requests;
    let of = |time: fn(&Sample) -> Duration| samples.iter().map(time).collect::<Vec<_>>();
    draw_times("Time to first token", "requests", of(|sample| sample.ttft), &areas[0])?;
    let gaps = samples.iter().flat_map(|sample| sample.itl.iter().copied()).collect();
    draw_times("Inter-token latency", "gaps", gaps, &areas[1])?;
    draw_times("End-to-end latency", "requests", of(|sample| sample.e2el), &areas[2])?;
    root.present()?;
    Ok(())
}

/// The part of all that took at most a time, with the median and the 99th percentile.
fn draw_times(caption: &str, what: &str, times: Vec<Duration>, area: &Area<'_>) -> Drawn {
    let mut ms: Vec<f64> = times.iter().map(|time| time.as_secs_f64() * 1e3).collect();
    ms.sort_unstable_by(f64::total_cmp);
    let (Some(&least), Some(&most)) = (ms.first(), ms.last()) else { return Ok(()) };
    let least = least.max(1e-3);
    let mut chart = ChartBuilder::on(area)
        .caption(caption, ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(48)
        .build_cartesian_2d((least * 0.9..most.max(least) * 1.1).log_scale(), 0.0..1.0)?;
    chart
        .configure_mesh()
        .x_desc("ms")
        .y_desc(format!("part of all {what}"))
        .x_labels(5)
        .light_line_style(WHITE)
        .draw()?;
    let points = ms.len().min(POINTS);
    let line = (0..=points).map(|i| {
        let part = i as f64 / points as f64;
        (percentile(&ms, 100.0 * part).max(least), part)
    });
    chart.draw_series(LineSeries::new(line, LINE.stroke_width(2)))?;
    for p in [50.0, 99.0] {
        let at = percentile(&ms, p);
        let mark = EmptyElement::at((at.max(least), p / 100.0))
            + Circle::new((0, 0), 4, MARK.filled())
            + Text::new(format!("p{p:.0} {at:.1} ms"), (-100, 4), ("sans-serif", 14));
        chart.draw_series([mark])?;
    }
    Ok(())
}
