//! Renders the screen as an SVG image.

use std::fmt::Write as _;

use ratatui::buffer::{Buffer, Cell};
use ratatui::style::{Color, Modifier};

const WIDTH: f64 = 8.4;
const HEIGHT: f64 = 17.0;
const MARGIN: f64 = 12.0;

/// Renders words as texts, frames as lines and bars as rectangles, so that the image does not depend on the
/// installed fonts.
pub(crate) fn of(buffer: &Buffer) -> String {
    let area = buffer.area;
    let (width, height) = (
        f64::from(area.width) * WIDTH + 2.0 * MARGIN,
        f64::from(area.height) * HEIGHT + 2.0 * MARGIN,
    );
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" \
         font-family=\"ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono', monospace\" font-size=\"14\">\n\
         <rect width=\"100%\" height=\"100%\" rx=\"8\" fill=\"#16181d\"/>\n"
    );
    for y in 0..area.height {
        let mut x = 0;
        while x < area.width {
            let cell = &buffer[(x, y)];
            let (left, top) = (f64::from(x) * WIDTH + MARGIN, f64::from(y) * HEIGHT + MARGIN);
            if let Some(shape) = shape(cell, left, top) {
                svg.push_str(&shape);
                x += 1;
                continue;
            }
            let start = x;
            let mut word = String::new();
            while x < area.width && is_of_word(&buffer[(x, y)], cell) {
                word.push_str(buffer[(x, y)].symbol());
                x += 1;
            }
            if start == x {
                x += 1;
                continue;
            }
            let length = f64::from(x - start) * WIDTH;
            let weight = match cell.modifier.contains(Modifier::BOLD) {
                true => " font-weight=\"bold\"",
                false => "",
            };
            let word = word.replace('&', "&amp;").replace('<', "&lt;");
            // Writing to a String cannot fail.
            let _ = writeln!(
                svg,
                "<text x=\"{left:.1}\" y=\"{:.1}\" textLength=\"{length:.1}\" lengthAdjust=\"spacingAndGlyphs\" \
                 fill=\"{}\"{weight}>{word}</text>",
                top + 13.0,
                color(cell.fg),
            );
        }
    }
    svg.push_str("</svg>\n");
    svg
}

fn is_of_word(cell: &Cell, first: &Cell) -> bool {
    let is_text = !cell.symbol().trim().is_empty() && shape(cell, 0.0, 0.0).is_none();
    is_text && (cell.fg, cell.modifier) == (first.fg, first.modifier)
}

/// Returns the SVG shape of a cell that is a part of a frame or a bar.
fn shape(cell: &Cell, left: f64, top: f64) -> Option<String> {
    let symbol = cell.symbol().chars().next()?;
    let (right, bottom) = (left + WIDTH, top + HEIGHT);
    let (middle, centre) = (left + WIDTH / 2.0, top + HEIGHT / 2.0);
    let path = match symbol {
        '─' => format!("M{left:.1} {centre:.1}H{right:.1}"),
        '│' => format!("M{middle:.1} {top:.1}V{bottom:.1}"),
        '┌' => format!("M{middle:.1} {bottom:.1}V{centre:.1}H{right:.1}"),
        '┐' => format!("M{left:.1} {centre:.1}H{middle:.1}V{bottom:.1}"),
        '└' => format!("M{middle:.1} {top:.1}V{centre:.1}H{right:.1}"),
        '┘' => format!("M{left:.1} {centre:.1}H{middle:.1}V{top:.1}"),
        // The characters from one eighth to eight eighths of a block.
        '▁'..='█' => {
            let eighths = f64::from(symbol as u32 - '▁' as u32 + 1);
            let height = HEIGHT * eighths / 8.0;
            let (y, fill) = (bottom - height, color(cell.fg));
            return Some(format!(
                "<rect x=\"{left:.1}\" y=\"{y:.1}\" width=\"{WIDTH}\" height=\"{height:.1}\" fill=\"{fill}\"/>\n"
            ));
        }
        _ => return None,
    };
    Some(format!("<path d=\"{path}\" stroke=\"#5c6370\" fill=\"none\"/>\n"))
}

const fn color(color: Color) -> &'static str {
    match color {
        Color::Red => "#ef6b73",
        Color::Green => "#8cc265",
        Color::Yellow => "#e5c07b",
        Color::Cyan => "#56b6c2",
        Color::DarkGray => "#7f848e",
        _ => "#d7dae0",
    }
}
