//! Reports as a picture.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use plotters::{coord::Shift, prelude::*};

use crate::Report;

/// Why there is no picture.
#[derive(Debug, thiserror::Error)]
pub enum PlotError {
    /// It could not be drawn.
    #[error("the plot could not be drawn: {0}")]
    Draw(String),
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

/// Told apart also by who does not see all colours (Okabe and Ito).
const COLORS: [RGBColor; 6] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(230, 159, 0),
];

const SIZE: (u32, u32) = (1500, 480);
/// Points of a line over tenants: more are not seen.
const TENANT_POINTS: usize = 400;

/// Draws reports beside each other, as SVG: the part of all requests that had their first
/// token within a time, what part of all service each tenant got, and the goodput.
///
/// # Errors
/// A file that cannot be written.
pub fn plot(reports: &[(&str, &Report)], path: &Path) -> Result<(), PlotError> {
    let mut svg = String::new();
    draw(reports, &mut svg).map_err(|error| PlotError::Draw(error.to_string()))?;
    fs::write(path, svg).map_err(|source| PlotError::Io { path: path.to_owned(), source })
}

fn color(index: usize) -> RGBColor {
    COLORS[index % COLORS.len()]
}

fn draw(reports: &[(&str, &Report)], svg: &mut String) -> Drawn {
    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let areas = root.split_evenly((1, 3));
    draw_ttft(reports, &areas[0])?;
    draw_shares(reports, &areas[1])?;
    draw_goodput(reports, &areas[2])?;
    root.present()?;
    Ok(())
}

fn draw_ttft(reports: &[(&str, &Report)], area: &Area<'_>) -> Drawn {
    let times = || reports.iter().flat_map(|(_, report)| &report.ttft_cdf).map(|&(time, _)| time);
    let least = times().fold(f64::INFINITY, f64::min).clamp(1e-6, 1e6);
    let most = times().fold(0.0, f64::max).max(2.0 * least);
    let mut chart = ChartBuilder::on(area)
        .caption("TTFT", ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(48)
        .build_cartesian_2d((least..most).log_scale(), 0.0..1.0)?;
    chart
        .configure_mesh()
        .x_desc("seconds")
        .y_desc("part of all requests")
        .x_labels(5)
        .light_line_style(WHITE)
        .draw()?;
    for (index, (label, report)) in reports.iter().enumerate() {
        let color = color(index).stroke_width(2);
        // Requests that are refused or late never have theirs: the line ends below 1.
        let line = report.ttft_cdf.iter().map(|&(time, part)| (time.max(least), part));
        chart
            .draw_series(LineSeries::new(line, color))?
            .label(*label)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], color));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK)
        .draw()?;
    Ok(())
}

fn draw_shares(reports: &[(&str, &Report)], area: &Area<'_>) -> Drawn {
    let shares = |report: &Report| {
        let mut shares: Vec<_> = report.tenants.iter().map(|tenant| tenant.share).collect();
        shares.sort_by(|a, b| b.total_cmp(a));
        shares
    };
    let count = reports.iter().map(|(_, report)| report.tenants.len()).max().unwrap_or(0).max(2);
    let most = reports.iter().filter_map(|(_, report)| shares(report).first().copied());
    let most = most.fold(1e-9, f64::max);
    let mut chart = ChartBuilder::on(area)
        .caption("Service by tenant, most first", ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(56)
        .build_cartesian_2d(1.0..count as f64, 0.0..most * 1.05)?;
    chart
        .configure_mesh()
        .x_desc("tenant")
        .y_desc("part of all service")
        .x_labels(5)
        .x_label_formatter(&|x| format!("{x:.0}"))
        .light_line_style(WHITE)
        .draw()?;
    for (index, (_, report)) in reports.iter().enumerate() {
        let shares = shares(report);
        let points = TENANT_POINTS.min(shares.len());
        let ranks = (0..points).map(|point| point * (shares.len() - 1) / (points - 1).max(1));
        let line = ranks.map(|rank| ((rank + 1) as f64, shares[rank]));
        chart.draw_series(LineSeries::new(line, color(index).stroke_width(2)))?;
    }
    Ok(())
}

fn draw_goodput(reports: &[(&str, &Report)], area: &Area<'_>) -> Drawn {
    let most = reports.iter().map(|(_, report)| report.goodput.requests).fold(1e-9, f64::max);
    let mut chart = ChartBuilder::on(area)
        .caption("Goodput", ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(56)
        .build_cartesian_2d(0.0..reports.len().max(1) as f64, 0.0..most * 1.1)?;
    let label = |x: &f64| {
        let label = reports.get(*x as usize).filter(|_| (x.fract() - 0.5).abs() < 1e-6);
        label.map_or_else(String::new, |(label, _)| (*label).to_owned())
    };
    chart
        .configure_mesh()
        .disable_x_mesh()
        .y_desc("requests/s")
        .x_labels(2 * reports.len() + 1)
        .x_label_formatter(&label)
        .light_line_style(WHITE)
        .draw()?;
    chart.draw_series(reports.iter().enumerate().map(|(index, (_, report))| {
        let left = index as f64;
        let corners = [(left + 0.2, 0.0), (left + 0.8, report.goodput.requests)];
        Rectangle::new(corners, color(index).filled())
    }))?;
    Ok(())
}
