//! Where a step's time goes: a server's last steps as a picture and a table of medians.

use std::{collections::BTreeMap, fmt, fs, path::Path};

use plotters::prelude::*;
use serde::Deserialize;

use crate::{ClientError, PlotError, Server, report::percentile};

type Drawn = Result<(), Box<dyn std::error::Error>>;

const SIZE: (u32, u32) = (1500, 380);
/// Steps that are drawn before and after the one that is typical.
const NEIGHBOURS: usize = 2;

/// When the phases of a step began and ended, in microseconds since the engine's start, as
/// `/admin/steps` tells it.
#[derive(Clone, Copy, Debug, Deserialize)]
struct StepTimes {
    step: u64,
    sequences: usize,
    tokens: usize,
    scheduled_us: f64,
    launched_us: f64,
    staged_us: f64,
    sampled_us: f64,
    awaited_us: f64,
    returned_us: f64,
    delivered_us: f64,
    device_us: Option<f64>,
}

/// A phase of the host's.
struct Phase {
    name: &'static str,
    colour: RGBColor,
    /// In microseconds.
    span: fn(&StepTimes) -> (f64, f64),
}

/// In their order. Colours are Okabe and Ito's, which colour-blind people can tell apart.
const PHASES: [Phase; 5] = [
    Phase {
        name: "schedule",
        colour: RGBColor(0, 114, 178),
        span: |step| (step.scheduled_us, step.launched_us),
    },
    Phase {
        name: "plan, upload",
        colour: RGBColor(86, 180, 233),
        span: |step| (step.launched_us, step.staged_us),
    },
    Phase {
        name: "launch",
        colour: RGBColor(0, 158, 115),
        span: |step| (step.staged_us, step.sampled_us),
    },
    Phase {
        name: "wait",
        colour: RGBColor(200, 200, 200),
        span: |step| (step.awaited_us, step.returned_us),
    },
    Phase {
        name: "hand out",
        colour: RGBColor(230, 159, 0),
        span: |step| (step.returned_us, step.delivered_us),
    },
];
const DEVICE: RGBColor = RGBColor(213, 94, 0);

/// A server's last steps, the oldest first.
#[derive(Debug, Deserialize)]
pub struct Profile {
    #[serde(rename = "data")]
    steps: Vec<StepTimes>,
}

impl Profile {
    /// What the server tells now.
    ///
    /// # Errors
    /// It is no Sconce, or wants an administrator's key.
    pub async fn of(server: &Server) -> Result<Self, ClientError> {
        server.get("/admin/steps").await
    }

    /// The steps after those of an earlier one.
    #[must_use]
    pub fn since(mut self, earlier: &Self) -> Self {
        if let Some(last) = earlier.steps.last() {
            self.steps.retain(|step| step.step > last.step);
        }
        self
    }

    /// The steps of as many sequences as most have.
    fn usual(&self) -> Vec<usize> {
        let mut by_sequences: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (index, step) in self.steps.iter().enumerate() {
            by_sequences.entry(step.sequences).or_default().push(index);
        }
        by_sequences.into_values().max_by_key(Vec::len).unwrap_or_default()
    }

    /// The median of a time in the usual steps, in microseconds.
    fn median(&self, usual: &[usize], of: impl Fn(&StepTimes) -> Option<f64>) -> Option<f64> {
        let times = usual.iter().filter_map(|&i| of(&self.steps[i]));
        let mut times: Vec<f64> = times.collect();
        times.sort_unstable_by(f64::total_cmp);
        (!times.is_empty()).then(|| percentile(&times, 50.0))
    }

    fn median_of(&self, usual: &[usize], phase: &Phase) -> f64 {
        let time = |step: &StepTimes| {
            let (begin, end) = (phase.span)(step);
            Some((end - begin).max(0.0))
        };
        self.median(usual, time).unwrap_or(0.0)
    }

    /// From one step's results to the next one's.
    fn gap(&self, index: usize) -> Option<f64> {
        let before = index.checked_sub(1)?;
        Some(self.steps[index].returned_us - self.steps[before].returned_us)
    }

    /// The usual step that takes the median time.
    fn typical(&self, usual: &[usize]) -> Option<usize> {
        let mut usual = usual.to_vec();
        usual.sort_by(|&a, &b| {
            let [a, b] = [a, b].map(|index| self.gap(index).unwrap_or(f64::INFINITY));
            a.total_cmp(&b)
        });
        usual.get(usual.len() / 2).copied()
    }
}

/// A table for people.
impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let usual = self.usual();
        let Some(&first) = usual.first() else { return write!(f, "no step") };
        let sequences = self.steps[first].sequences;
        write!(f, "{} steps of {sequences} sequences, medians in us", usual.len())?;
        for phase in &PHASES {
            write!(f, "\n{:<22}{:>12.1}", phase.name, self.median_of(&usual, phase))?;
        }
        if let Some(device) = self.median(&usual, |step| step.device_us) {
            write!(f, "\n{:<22}{device:>12.1}", "device")?;
        }
        Ok(())
    }
}

/// Draws a step that takes the median time among its neighbours, as SVG: what the host did, and
/// below it the device, where that measures its time.
///
/// # Errors
/// There is no step, or a file that cannot be written.
pub fn plot_profile(profile: &Profile, path: &Path) -> Result<(), PlotError> {
    let usual = profile.usual();
    let typical = profile.typical(&usual).ok_or(PlotError::NoSteps)?;
    let mut svg = String::new();
    draw(profile, (&usual, typical), &mut svg)
        .map_err(|error| PlotError::Draw(error.to_string()))?;
    fs::write(path, svg).map_err(|source| PlotError::Io { path: path.to_owned(), source })
}

fn draw(profile: &Profile, (usual, typical): (&[usize], usize), svg: &mut String) -> Drawn {
    let window =
        typical.saturating_sub(NEIGHBOURS)..profile.steps.len().min(typical + NEIGHBOURS + 1);
    let window = &profile.steps[window];
    let from = window.iter().map(|step| step.scheduled_us).fold(f64::INFINITY, f64::min);
    let to = window.iter().map(|step| step.delivered_us).fold(0.0, f64::max);
    // With those that overlap them.
    let is_shown = |step: &&StepTimes| step.delivered_us > from && step.scheduled_us < to;
    let steps: Vec<&StepTimes> = profile.steps.iter().filter(is_shown).collect();
    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let StepTimes { step, sequences, tokens, .. } = profile.steps[typical];
    let title =
        format!("Step {step} of {sequences} sequences and {tokens} tokens, and its neighbours");
    let root = root.titled(&title, ("sans-serif", 20))?;
    let ms = |us: f64| (us.clamp(from, to) - from) / 1e3;
    let mut chart = ChartBuilder::on(&root)
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(60)
        .build_cartesian_2d(0.0..ms(to), 0.0..3.2)?;
    chart.configure_mesh().disable_mesh().disable_y_axis().x_desc("ms").x_labels(10).draw()?;
    for (name, at) in [("host", 1.35), ("device", 0.35)] {
        let label = EmptyElement::at((0.0, at)) + Text::new(name, (-52, -7), ("sans-serif", 14));
        chart.draw_series([label])?;
    }
    let bar = |(begin, end): (f64, f64), lane: f64, colour: RGBColor| {
        Rectangle::new([(ms(begin), lane + 0.1), (ms(end), lane + 0.6)], colour.filled())
    };
    for phase in &PHASES {
        let legend = format!("{}: {:.1} us", phase.name, profile.median_of(usual, phase));
        let bars = steps.iter().map(|step| bar((phase.span)(step), 1.0, phase.colour));
        let colour = phase.colour;
        chart.draw_series(bars)?.label(legend).legend(move |at| square(at, colour));
    }
    // A step begins on the device once it is staged and the one before has ended.
    let mut free = from;
    let mut bars = Vec::new();
    for step in steps {
        let Some(time) = step.device_us else { continue };
        let begin = free.max(step.staged_us);
        free = begin + time;
        bars.push(bar((begin, free), 0.0, DEVICE));
        if begin < to {
            let label = format!("step {}", step.step);
            chart.draw_series([Text::new(label, (ms(begin), 0.8), ("sans-serif", 14))])?;
        }
    }
    if let Some(median) = profile.median(usual, |step| step.device_us) {
        let series = chart.draw_series(bars)?;
        series.label(format!("device: {median:.1} us")).legend(|at| square(at, DEVICE));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .label_font(("sans-serif", 14))
        .background_style(WHITE)
        .draw()?;
    root.present()?;
    Ok(())
}

fn square((x, y): (i32, i32), colour: RGBColor) -> Rectangle<(i32, i32)> {
    Rectangle::new([(x, y - 5), (x + 14, y + 5)], colour.filled())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// Steps of 100 us, of which the device takes 60; the first and the last are of one sequence.
    fn profile(count: u64, device: Option<f64>) -> Profile {
        let step = |step: u64| {
            let at = |us: f64| 1000.0 + 100.0 * step as f64 + us;
            json!({
                "step": step, "sequences": if step == 0 || step == count - 1 { 1 } else { 8 },
                "tokens": 8, "scheduled_us": at(0.0), "launched_us": at(5.0),
                "staged_us": at(15.0), "sampled_us": at(25.0), "awaited_us": at(27.0),
                "returned_us": at(80.0), "delivered_us": at(99.0), "device_us": device,
            })
        };
        let data: Vec<Value> = (0..count).map(step).collect();
        serde_json::from_value(json!({ "object": "list", "data": data })).expect("a profile")
    }

    #[test]
    fn the_usual_steps_are_told_and_drawn() {
        let profile = profile(9, Some(60.0));
        let told = profile.to_string();
        assert!(told.starts_with("7 steps of 8 sequences"), "{told}");
        for (name, us) in [
            ("schedule", "5.0"),
            ("plan, upload", "10.0"),
            ("launch", "10.0"),
            ("wait", "53.0"),
            ("hand out", "19.0"),
            ("device", "60.0"),
        ] {
            let line = told.lines().find(|line| line.starts_with(name)).expect(name);
            assert!(line.ends_with(us), "{line}");
        }
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("profile.svg");
        plot_profile(&profile, &path).expect("it can be drawn");
        let svg = fs::read_to_string(&path).expect("it is there");
        for words in ["of 8 sequences", "plan, upload: 10.0 us", "device: 60.0 us", "step 4"] {
            assert!(svg.contains(words), "{words}: {svg}");
        }
    }

    #[test]
    fn what_was_before_is_left_out_and_nothing_is_no_picture() {
        let (early, late) = (profile(5, None), profile(9, None));
        let since = late.since(&early);
        assert_eq!(since.steps.iter().map(|step| step.step).collect::<Vec<_>>(), [5, 6, 7, 8]);
        assert!(!since.to_string().contains("device"), "it does not measure");
        let folder = tempfile::tempdir().expect("a folder");
        plot_profile(&since, &folder.path().join("a.svg")).expect("it can be drawn");
        let none = profile(2, None).since(&early);
        let error = plot_profile(&none, &folder.path().join("b.svg")).expect_err("there is none");
        assert!(matches!(error, PlotError::NoSteps), "{error}");
    }
}
