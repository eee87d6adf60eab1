//! Horizontal bar charts as SVG.

use std::error::Error;

use plotters::prelude::*;

const WIDTH: u32 = 800;
const LABELS: u32 = 260;
const BAR: u32 = 30;
const COLOR: RGBColor = RGBColor(0x2f, 0x6f, 0xa7);

/// Draws a bar for each value, the first one at the top.
pub fn bars(title: &str, bars: &[(String, f64)]) -> Result<String, Box<dyn Error + Send + Sync>> {
    let mut svg = String::new();
    {
        let size = (WIDTH, BAR * bars.len() as u32 + 80);
        let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        area.fill(&WHITE)?;
        let longest = bars.iter().map(|(_, value)| *value).fold(0.0, f64::max);
        // Room for the number behind the longest bar.
        let mut chart = ChartBuilder::on(&area)
            .caption(title, ("sans-serif", 16))
            .margin(10)
            .margin_right(20)
            .x_label_area_size(25)
            .y_label_area_size(LABELS)
            .build_cartesian_2d(0.0..longest * 1.15, (0..bars.len()).into_segmented())?;
        // The axis points up, so the first bar is the last place.
        let place = |bar: usize| bars.len() - 1 - bar;
        chart
            .configure_mesh()
            .disable_y_mesh()
            .y_labels(bars.len())
            .y_label_style(("sans-serif", 14))
            .x_label_style(("sans-serif", 12))
            .y_label_formatter(&|segment| match segment {
                SegmentValue::CenterOf(at) if *at < bars.len() => bars[place(*at)].0.clone(),
                _ => String::new(),
            })
            .draw()?;
        chart.draw_series(bars.iter().enumerate().map(|(bar, (_, value))| {
            let (at, next) = (place(bar), place(bar) + 1);
            let corners = [
                (0.0, SegmentValue::Exact(at)),
                (*value, SegmentValue::Exact(next)),
            ];
            let mut bar = Rectangle::new(corners, COLOR.filled());
            bar.set_margin(5, 5, 0, 0);
            bar
        }))?;
        chart.draw_series(bars.iter().enumerate().map(|(bar, (_, value))| {
            let at = (*value, SegmentValue::CenterOf(place(bar)));
            EmptyElement::at(at) + Text::new(number(*value), (5, -7), ("sans-serif", 14))
        }))?;
        area.present()?;
    }
    Ok(svg)
}

/// Returns the number with three significant digits, or as an integer from 100 on.
fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}
