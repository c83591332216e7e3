//! Configurations over numbers of clients: throughput of a GPU against the speed that a user sees.
//!
//! At one number of clients the two say nearly the same, since a closed loop of `c` clients makes
//! about `c / TPOT` tokens a second. What a layout is good for shows over all numbers of clients.

use crate::deployment::{Deployment, Setup};
use crate::parallel;
use crate::plan::Choice;
use crate::question::{Settings, Traffic};
use serde::Serialize;

/// Numbers of clients are tried up to this many times the planned one, and at least up to
/// [`LEAST_MOST`].
const BEYOND: f64 = 4.0;
/// See [`BEYOND`].
const LEAST_MOST: f64 = 1024.0;

/// A configuration at one number of clients.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Point {
    /// Clients of the whole deployment.
    pub clients: f64,
    /// Output tokens a second that one user sees: the inverse of TPOT, or of TTFT where a request
    /// has one output token.
    pub tokens_per_s_user: f64,
    /// Output tokens a second, divided by all GPUs.
    pub tokens_per_s_gpu: f64,
}

/// A configuration at every number of clients that it can serve, fewest first.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Curve {
    /// The configuration.
    pub choice: Choice,
    /// Its points.
    pub points: Vec<Point>,
}

/// Powers of two, and the planned number among them.
pub fn clients(traffic: &Traffic) -> Vec<f64> {
    let most = (traffic.concurrency * BEYOND).max(LEAST_MOST);
    let mut all: Vec<f64> = std::iter::successors(Some(1.0), |n| Some(n * 2.0))
        .take_while(|n| *n <= most)
        .chain([traffic.concurrency])
        .collect();
    all.sort_by(f64::total_cmp);
    all.dedup();
    all
}

/// The curves of some configurations, in their order; none when `keep_going` said no. Each point is
/// planned for its own number of clients: its limits, graphs and memory are those of a launch for
/// that many.
pub fn sweep(
    setup: &Setup<'_>,
    traffic: &Traffic,
    settings: &Settings,
    choices: &[Choice],
    threads: usize,
    keep_going: &(dyn Fn() -> bool + Sync),
) -> Option<Vec<Curve>> {
    let clients = clients(traffic);
    let one = |choice: &Choice| {
        keep_going().then(|| Curve {
            choice: *choice,
            points: clients
                .iter()
                .filter_map(|&clients| point(setup, traffic, settings, *choice, clients))
                .collect(),
        })
    };
    parallel::map(choices, threads, one)
}

fn point(
    setup: &Setup<'_>,
    traffic: &Traffic,
    settings: &Settings,
    choice: Choice,
    clients: f64,
) -> Option<Point> {
    let traffic = Traffic {
        concurrency: clients,
        requests_per_s: None,
        ..traffic.clone()
    };
    let deployment = Deployment::new(setup, &traffic, settings, choice);
    if deployment.does_not_fit(&traffic).is_some() {
        return None;
    }
    let service = deployment.serve(&traffic);
    let layout = choice.layout;
    let point = Point {
        clients,
        tokens_per_s_user: 1e6 / service.tpot_us.unwrap_or(service.ttft_us),
        tokens_per_s_gpu: service.requests_per_s * f64::from(layout.replicas) * traffic.osl
            / f64::from(layout.gpus()),
    };
    (point.tokens_per_s_user.is_finite() && point.tokens_per_s_gpu.is_finite()).then_some(point)
}

/// The points that no other beats in both, fastest for a user first: each as its curve and its place
/// in it.
pub fn front(curves: &[Curve]) -> Vec<(usize, usize)> {
    let mut order: Vec<(usize, usize)> = curves
        .iter()
        .enumerate()
        .flat_map(|(curve, c)| (0..c.points.len()).map(move |point| (curve, point)))
        .collect();
    let at = |&(curve, point): &(usize, usize)| curves[curve].points[point];
    order.sort_by(|a, b| {
        let (a, b) = (at(a), at(b));
        b.tokens_per_s_user
            .total_cmp(&a.tokens_per_s_user)
            .then(b.tokens_per_s_gpu.total_cmp(&a.tokens_per_s_gpu))
    });
    let mut most = f64::NEG_INFINITY;
    order.retain(|place| {
        let much = at(place).tokens_per_s_gpu;
        let better = much > most;
        most = most.max(much);
        better
    });
    order
}
