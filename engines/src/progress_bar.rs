//! A bar on standard error for a task that takes long. All programs have the same style.

use indicatif::ProgressStyle;
pub use indicatif::{ProgressBar, ProgressDrawTarget};

/// The parts of a bar: a prefix, the bar, the share of the work, and a message.
const TEMPLATE: &str = "{prefix}[{bar:32}] {percent:>3}% {msg}";

/// Returns a bar on standard error. It has no length yet, and draws nothing outside a terminal.
pub fn progress_bar() -> ProgressBar {
    let style = ProgressStyle::with_template(TEMPLATE).expect("a constant template");
    ProgressBar::no_length().with_style(style.progress_chars("=> "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_begins_at_zero_and_takes_a_length_later() {
        let bar = progress_bar();
        bar.set_draw_target(ProgressDrawTarget::hidden());
        assert_eq!((bar.length(), bar.position()), (None, 0));
        bar.set_length(4);
        bar.set_position(3);
        assert_eq!((bar.length(), bar.position()), (Some(4), 3));
    }
}
