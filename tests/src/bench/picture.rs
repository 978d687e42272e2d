//! The two figures that a picture tells best: tokens per second against batch, time to the first token against context.

use std::path::Path;

use plotters::prelude::*;

use super::report::{Figure, Report};
use super::table::ttft_ms;

/// Width and height.
const SIZE: (u32, u32) = (1100, 460);
/// Of everything but titles.
const TEXT: (&str, i32) = ("sans-serif", 19);
/// Of the sides, in their order: told apart also without colours, by their brightness (Okabe and Ito, 2008).
const COLOURS: [RGBColor; 3] = [RGBColor(0, 114, 178), RGBColor(230, 159, 0), RGBColor(86, 86, 86)];

/// A line of a chart.
struct Curve {
    name: String,
    points: Vec<(f64, f64)>,
}

/// Draws `report` into the SVG file `path`.
pub fn draw(report: &Report, path: &Path) -> Result<(), String> {
    let decode = curves(&report.engine, "decode", |_, side| side.median);
    let ttft = curves(&report.engine, "prefill", ttft_ms);
    let failed = |error: &dyn std::fmt::Display| format!("{} cannot be drawn: {error}", path.display());
    let area = SVGBackend::new(path, SIZE).into_drawing_area();
    area.fill(&WHITE).map_err(|error| failed(&error))?;
    let (left, right) = area.split_horizontally(SIZE.0 / 2);
    chart(&left, "Decode, tokens/s", "sequences at once", &decode).map_err(|error| failed(&error))?;
    chart(&right, "Time to first token, ms", "prompt tokens", &ttft).map_err(|error| failed(&error))?;
    area.present().map_err(|error| failed(&error))
}

fn curves(figures: &[Figure], kind: &str, value: fn(&Figure, &super::report::Samples) -> f64) -> Vec<Curve> {
    let figures: Vec<&Figure> = figures.iter().filter(|figure| figure.kind == kind).collect();
    let sides = figures.first().map_or(0, |figure| figure.sides.len());
    let curve = |side: usize| Curve {
        name: figures[0].sides[side].side.clone(),
        points: figures
            .iter()
            .map(|figure| (figure.size as f64, value(figure, &figure.sides[side])))
            .collect(),
    };
    (0..sides).map(curve).collect()
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

fn chart(
    area: &Area<'_>,
    title: &str,
    below: &str,
    curves: &[Curve],
) -> Result<(), Box<dyn std::error::Error>> {
    let points = || curves.iter().flat_map(|curve| &curve.points).filter(|point| point.1.is_finite());
    let most = |of: fn(&(f64, f64)) -> f64| points().map(of).fold(1.0, f64::max);
    let least = points().map(|point| point.0).fold(f64::INFINITY, f64::min).min(most(|point| point.0) / 2.0);
    let mut chart = ChartBuilder::on(area)
        .margin(16)
        .caption(title, ("sans-serif", 23))
        .x_label_area_size(50)
        .y_label_area_size(72)
        .build_cartesian_2d(
            (least..most(|point| point.0)).log_scale().base(2.0),
            0.0..1.05 * most(|point| point.1),
        )?;
    chart
        .configure_mesh()
        .x_desc(below)
        .x_label_formatter(&|x| format!("{x:.0}"))
        .y_label_formatter(&|y| format!("{y:.0}"))
        .light_line_style(TRANSPARENT)
        .label_style(TEXT)
        .draw()?;
    for (curve, colour) in curves.iter().zip(COLOURS.iter().cycle()) {
        let style = colour.stroke_width(2);
        chart
            .draw_series(LineSeries::new(curve.points.clone(), style).point_size(3))?
            .label(&curve.name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], style));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.2))
        .label_font(TEXT)
        .draw()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::machine::Machine;
    use super::super::report::Samples;
    use super::super::{BenchSettings, table};
    use super::*;

    fn report() -> Report {
        let (model, only) = ("some/model.gguf".into(), Vec::new());
        let settings = BenchSettings { model, wide_model: None, llama_cpp: None, quick: true, only };
        let mut report = Report::new(&settings, Machine::look());
        let figure = |kind, size, speeds: [f64; 2]| Figure {
            kind,
            size,
            sides: vec![
                Samples::new("Turnmill", vec![speeds[0]]),
                Samples::new("llama.cpp, as Q8_0", vec![speeds[1]]),
            ],
        };
        report.engine = vec![
            figure("prefill", 512, [4000.0, 1000.0]),
            figure("decode", 1, [100.0, 50.0]),
            figure("decode", 32, [1200.0, 300.0]),
        ];
        report
    }

    #[test]
    fn the_picture_names_both_sides_and_has_no_number_that_is_none() {
        let folder = tempfile::tempdir().expect("the temporary directory is writable");
        let path = folder.path().join("bench.svg");
        draw(&report(), &path).expect("it is drawn");
        let drawn = std::fs::read_to_string(&path).expect("it is there");
        for text in ["Turnmill", "llama.cpp, as Q8_0", "Decode, tokens/s", "Time to first token, ms"] {
            assert!(drawn.contains(text), "{text} is missing");
        }
        assert!(!drawn.contains("NaN") && !drawn.contains("inf"), "{drawn}");
    }

    #[test]
    fn a_report_without_any_figure_is_drawn_too() {
        let folder = tempfile::tempdir().expect("the temporary directory is writable");
        let report = Report { engine: Vec::new(), ..report() };
        draw(&report, &folder.path().join("bench.svg")).expect("it is drawn");
    }

    #[test]
    fn the_table_says_how_many_times_as_fast_and_how_long_a_first_token_takes() {
        let table = table::render(&report());
        let row = |name: &str| table.lines().find(|line| line.contains(name)).expect("a row").to_owned();
        assert!(row("decode x32").contains("4.00x"), "{table}");
        assert!(table.contains("128.0") && table.contains("512.0"), "{table}");
    }
}
