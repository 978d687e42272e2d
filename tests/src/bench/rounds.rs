//! Sides that take turns; medians, percentiles and ratios.

use std::time::Instant;

use super::report::{Figure, Samples};
use super::side::{Figures, Point, Side};
use super::{BenchError, Extent, say};

/// Measures `points` of all sides: in each round, each side has its turn. The first side is the one that ratios are about.
pub(super) async fn measure(
    sides: &[Side],
    points: &[Point],
    extent: &Extent,
    began: Instant,
) -> Result<Vec<Figure>, BenchError> {
    let mut rounds: Vec<Vec<Figures>> = Vec::new();
    for round in 1..=extent.rounds {
        let mut figures = Vec::new();
        for side in sides {
            say(began, &format!("engine, round {round} of {}: {}", extent.rounds, side.name));
            figures.push(side.figures(points, extent.runs).await?);
        }
        rounds.push(figures);
    }
    Ok(points.iter().map(|point| figure(*point, sides, &rounds)).collect())
}

/// All rounds of one point; `rounds` has a list a round of a list a side.
fn figure(point: Point, sides: &[Side], rounds: &[Vec<Figures>]) -> Figure {
    let of_side = |(index, side): (usize, &Side)| {
        let tok_s = |round: &Vec<Figures>| round[index].iter().find(|(p, _)| *p == point).map(|(_, s)| *s);
        Samples::new(&side.name, rounds.iter().filter_map(tok_s).collect())
    };
    let (kind, size) = match point {
        Point::Prefill(tokens) => ("prefill", tokens),
        Point::Decode(batch) => ("decode", batch),
        Point::Long(tokens) => ("decode_long", tokens),
    };
    Figure { kind, size, sides: sides.iter().enumerate().map(of_side).collect() }
}

/// The middle one; of an even number the mean of the two in the middle. NaN of nothing.
pub(super) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => f64::NAN,
        length if length % 2 == 1 => sorted[middle],
        _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

/// What `share` of values stay below; `sorted` has the smallest first. NaN of nothing.
pub(super) fn percentile(sorted: &[f64], share: f64) -> f64 {
    let last = sorted.len().saturating_sub(1);
    sorted.get(((sorted.len() as f64 * share) as usize).min(last)).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn medians_are_those_of_statistics() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 9.0]), 3.0);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn the_ratio_is_that_of_medians_to_the_fastest_other() {
        let side = |name: &str| Side::llama_cpp(name, Path::new("bin"), Path::new("model"));
        let sides = [Side::turnmill(Path::new("model")), side("slow"), side("fast")];
        let point = Point::Decode(8);
        let round =
            |speeds: [f64; 3]| speeds.map(|speed| vec![(Point::Prefill(8), 1.0), (point, speed)]).to_vec();
        let rounds = [round([30.0, 5.0, 10.0]), round([90.0, 5.0, 11.0]), round([60.0, 5.0, 30.0])];
        let figure = figure(point, &sides, &rounds);
        assert_eq!(figure.sides[0].rounds, [30.0, 90.0, 60.0]);
        // Ratios of rounds would be 3, 8.2 and 2, and their median 3.
        assert_eq!(figure.ratio(), Some(60.0 / 11.0));
    }
}
