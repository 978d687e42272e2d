//! Checks an expression against a catalogue: that its metrics exist, that every label it names is one of theirs, and every
//! value that it looks for one of the label's, that counters are rated and gauges are not, and that both sides of an operator can match.
//!
//! It infers which labels each part of an expression has, as Prometheus would with series that have all of their labels.

use rusty_promql_parser::{
    Aggregation, BinaryExpr, BinaryOp, Call, Expr, GroupSide, GroupingAction, LabelMatchOp, LabelMatcher,
    VectorMatchingOp, VectorSelector, expr,
};

use super::catalogue::{Catalogue, Labels, NoSeries, Series};

/// Functions that make of a counter how fast it grows.
const RATES: [&str; 4] = ["rate", "irate", "increase", "resets"];
/// Functions that only ask whether there are samples.
const PRESENCE: [&str; 5] =
    ["absent", "absent_over_time", "count_over_time", "present_over_time", "timestamp"];

/// What a part of an expression gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shape {
    /// A number or a string.
    Scalar,
    /// Series that have at most these labels.
    Vector(Labels),
    /// Something was wrong with it, and was told.
    Unknown,
}

impl Shape {
    /// Its labels, or none where it is no vector.
    pub fn labels(&self) -> Labels {
        match self {
            Self::Vector(labels) => labels.clone(),
            Self::Scalar | Self::Unknown => Labels::new(),
        }
    }
}

/// What an expression gives, or everything that is wrong with it.
pub fn check(text: &str, catalogue: &Catalogue) -> Result<Shape, Vec<String>> {
    let expr = parse(text).map_err(|fault| vec![fault])?;
    let mut checker = Checker { catalogue, faults: Vec::new() };
    let shape = checker.shape(&expr, None);
    if checker.faults.is_empty() { Ok(shape) } else { Err(checker.faults) }
}

fn parse(text: &str) -> Result<Expr, String> {
    match expr(text.trim()) {
        Ok((rest, expr)) if rest.trim().is_empty() => Ok(expr),
        Ok((rest, _)) => Err(format!("it is no PromQL from here on: {rest}")),
        Err(error) => Err(format!("it is no PromQL: {error}")),
    }
}

/// Selectors of an expression as they are asked for alone, without ranges: `name{matchers}`. One that takes any of some
/// values, as `a|b`, is one for each of them.
pub fn selectors(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    if let Ok(expr) = parse(text) {
        collect(&expr, &mut found);
    }
    found
}

fn collect(expr: &Expr, found: &mut Vec<String>) {
    match expr {
        Expr::VectorSelector(selector) => found.extend(alone(selector)),
        Expr::MatrixSelector(matrix) => found.extend(alone(&matrix.selector)),
        Expr::Aggregation(aggregation) => collect(&aggregation.expr, found),
        Expr::Unary(unary) => collect(&unary.expr, found),
        Expr::Binary(binary) => {
            collect(&binary.lhs, found);
            collect(&binary.rhs, found);
        }
        Expr::Paren(inner) => collect(inner, found),
        Expr::Subquery(subquery) => collect(&subquery.expr, found),
        Expr::Call(call) => call.args.iter().for_each(|argument| collect(argument, found)),
        Expr::Number(_) | Expr::String(_) => {}
    }
}

fn alone(selector: &VectorSelector) -> Vec<String> {
    let mut variants = vec![VectorSelector { offset: None, at: None, ..selector.clone() }];
    for (i, matcher) in selector.matchers.iter().enumerate() {
        if matcher.op != LabelMatchOp::RegexMatch || !is_list(matcher) {
            continue;
        }
        let one = |selector: &VectorSelector, value: &str| {
            let mut selector = selector.clone();
            selector.matchers[i] = LabelMatcher::new(&matcher.name, LabelMatchOp::Equal, value);
            selector
        };
        let each = |selector| listed(matcher).map(move |value| one(selector, value));
        variants = variants.iter().flat_map(each).collect();
    }
    variants.iter().map(ToString::to_string).collect()
}

/// Whether it takes values that it lists, and not those that look like something.
fn is_list(matcher: &LabelMatcher) -> bool {
    !matcher.op.is_regex() || matcher.value.chars().all(|c| c.is_alphanumeric() || c == '_' || c == '|')
}

/// The values that a matcher lists.
fn listed(matcher: &LabelMatcher) -> impl Iterator<Item = &str> {
    let separator = if matcher.op.is_regex() { "|" } else { "\n" };
    matcher.value.split(separator).filter(|_| is_list(matcher))
}

struct Checker<'a> {
    catalogue: &'a Catalogue,
    faults: Vec<String>,
}

impl Checker<'_> {
    /// `within`: the function whose argument it is.
    fn shape(&mut self, expr: &Expr, within: Option<&str>) -> Shape {
        match expr {
            Expr::Number(_) | Expr::String(_) => Shape::Scalar,
            Expr::VectorSelector(selector) => self.selector(selector, within),
            Expr::MatrixSelector(matrix) => self.selector(&matrix.selector, within),
            Expr::Paren(inner) => self.shape(inner, within),
            Expr::Unary(unary) => self.shape(&unary.expr, None),
            Expr::Subquery(subquery) => self.shape(&subquery.expr, None),
            Expr::Aggregation(aggregation) => self.aggregation(aggregation),
            Expr::Binary(binary) => self.binary(binary),
            Expr::Call(call) => self.call(call),
        }
    }

    fn wrong(&mut self, fault: String) -> Shape {
        self.faults.push(fault);
        Shape::Unknown
    }

    fn selector(&mut self, selector: &VectorSelector, within: Option<&str>) -> Shape {
        let Some(name) = &selector.name else {
            return self.wrong(format!("{selector} has no name"));
        };
        let series = match self.catalogue.series(name) {
            Ok(series) => series,
            Err(NoSeries::Unknown) => return self.wrong(format!("there is no metric {name}")),
            Err(NoSeries::Histogram) => {
                return self.wrong(format!("{name} is a histogram; use its _bucket, _sum or _count"));
            }
        };
        let rated = within.is_some_and(|function| RATES.contains(&function));
        let presence = within.is_some_and(|function| PRESENCE.contains(&function));
        if series.counts && !rated && !presence {
            self.wrong(format!("{name} only grows; use rate or increase"));
        }
        if !series.counts && rated {
            self.wrong(format!("{name} does not only grow; use delta or deriv"));
        }
        for matcher in &selector.matchers {
            self.matcher(name, &series, matcher);
        }
        Shape::Vector(series.labels)
    }

    fn matcher(&mut self, name: &str, series: &Series, matcher: &LabelMatcher) {
        let label = &matcher.name;
        if !series.labels.contains(label) {
            self.wrong(format!("{name} has no label {label}"));
        } else if !self.catalogue.target_labels.contains(label) && !series.values.is_empty() {
            let unknown = listed(matcher).filter(|value| !series.values.iter().any(|known| known == value));
            for value in unknown {
                self.wrong(format!("{name} is never {label}=\"{value}\""));
            }
        }
    }

    fn aggregation(&mut self, aggregation: &Aggregation) -> Shape {
        let Shape::Vector(labels) = self.shape(&aggregation.expr, None) else { return Shape::Unknown };
        let Some(grouping) = &aggregation.grouping else { return Shape::Vector(Labels::new()) };
        self.has_all(&labels, &grouping.labels, aggregation);
        match grouping.action {
            GroupingAction::By => Shape::Vector(grouping.labels.iter().cloned().collect()),
            GroupingAction::Without => Shape::Vector(without_labels(&labels, &grouping.labels)),
        }
    }

    fn has_all(&mut self, labels: &Labels, wanted: &[String], place: &impl std::fmt::Display) {
        for label in wanted.iter().filter(|label| !labels.contains(*label)) {
            self.wrong(format!("there is no label {label} in {place}"));
        }
    }

    fn binary(&mut self, binary: &BinaryExpr) -> Shape {
        let (left, right) = match (self.shape(&binary.lhs, None), self.shape(&binary.rhs, None)) {
            (Shape::Unknown, _) | (_, Shape::Unknown) => return Shape::Unknown,
            (Shape::Scalar, other) | (other, Shape::Scalar) => return other,
            (Shape::Vector(left), Shape::Vector(right)) => (left, right),
        };
        if binary.op == BinaryOp::Or {
            return Shape::Vector(&left | &right);
        }
        let matching = binary.modifier.as_ref().and_then(|modifier| modifier.matching.as_ref());
        let named: &[String] = matching.map_or(&[], |matching| &matching.labels);
        let matched = if matching.is_some_and(|matching| matching.op == VectorMatchingOp::On) {
            self.has_all(&left, named, binary);
            self.has_all(&right, named, binary);
            named.iter().cloned().collect()
        } else {
            let of = |labels: &Labels| without_labels(labels, named);
            if of(&left) != of(&right) {
                let (left, right) = (Vec::from_iter(&left), Vec::from_iter(&right));
                self.wrong(format!("{binary} never matches: {left:?} and {right:?}"));
            }
            of(&left)
        };
        match matching.and_then(|matching| matching.group.as_ref()) {
            _ if binary.op.is_set_operator() => Shape::Vector(left),
            Some(group) if group.side == GroupSide::Left => Shape::Vector(with(left, &group.labels)),
            Some(group) => Shape::Vector(with(right, &group.labels)),
            None => Shape::Vector(matched),
        }
    }

    fn call(&mut self, call: &Call) -> Shape {
        let name = call.name.as_str();
        let shapes: Vec<Shape> = call.args.iter().map(|argument| self.shape(argument, Some(name))).collect();
        let vector = shapes.into_iter().find(|shape| *shape != Shape::Scalar);
        match (name, vector) {
            ("time" | "pi" | "scalar", _) => Shape::Scalar,
            ("vector", _) => Shape::Vector(Labels::new()),
            ("label_replace" | "label_join", _) => self.wrong(format!("this check does not know {name}")),
            ("absent" | "absent_over_time", Some(Shape::Vector(_))) => Shape::Vector(told_by_absence(call)),
            ("histogram_quantile", Some(Shape::Vector(labels))) => {
                self.has_all(&labels, &["le".to_owned()], call);
                Shape::Vector(without_labels(&labels, &["le".to_owned()]))
            }
            (_, shape) => shape.unwrap_or(Shape::Scalar),
        }
    }
}

/// Of what is not there, Prometheus knows the labels that were asked for.
fn told_by_absence(call: &Call) -> Labels {
    let matchers = call.args.first().map(|argument| match argument {
        Expr::VectorSelector(selector) => selector.matchers.clone(),
        Expr::MatrixSelector(matrix) => matrix.selector.matchers.clone(),
        _ => Vec::new(),
    });
    matchers.unwrap_or_default().into_iter().map(|matcher| matcher.name).collect()
}

fn without_labels(labels: &Labels, gone: &[String]) -> Labels {
    labels.iter().filter(|label| !gone.contains(label)).cloned().collect()
}

fn with(mut labels: Labels, more: &[String]) -> Labels {
    labels.extend(more.iter().cloned());
    labels
}

#[cfg(test)]
mod tests;
