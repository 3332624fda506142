//! Dimensions: integer polynomials over named symbols and floor divisions, in normal form. Equality
//! of two dimensions is equality of two values. There is no solver and no inequality: a graph
//! proves its shapes by algebra, or it fails.

use std::collections::BTreeMap;
use std::fmt;

/// Values for symbols, e.g. `h = 24, w = 44`.
pub type Bindings = BTreeMap<String, i64>;

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Atom {
    Symbol(String),
    /// `floor(dim / divisor)`, kept when it does not divide evenly by algebra.
    Floor(Dim, i64),
}

/// A dimension: an integer polynomial over symbols, such as `2*h*w + floor(h/2)*floor(w/2)`.
///
/// ```
/// use engines::dim::{Bindings, Dim};
///
/// let tokens = Dim::parse("3*h*w")?;
/// assert_eq!(tokens, Dim::symbol("w") * Dim::symbol("h") * Dim::from(3));
/// let rows = Bindings::from([("h".to_owned(), 24)]);
/// assert_eq!(tokens.bind(&rows).to_string(), "72*w");
/// assert_eq!(tokens.solve(3168, &rows), Some(("w".to_owned(), 44)));
/// # Ok::<(), engines::dim::DimParseError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Dim {
    /// Non-zero coefficients by sorted product of atoms. The empty product is the constant term.
    terms: BTreeMap<Vec<Atom>, i64>,
}

/// A text that is no dimension.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("dimension {text:?}: {reason} at byte {at}")]
pub struct DimParseError {
    /// The text of the dimension.
    pub text: String,
    /// Byte at which the text cannot be read.
    pub at: usize,
    /// The rule that the text breaks there.
    pub reason: &'static str,
}

impl Dim {
    /// Makes the dimension that is one symbol.
    pub fn symbol(name: impl Into<String>) -> Self {
        Self {
            terms: BTreeMap::from([(vec![Atom::Symbol(name.into())], 1)]),
        }
    }

    /// Returns the constant, if no symbol is left.
    pub fn as_const(&self) -> Option<i64> {
        match self.terms.len() {
            0 => Some(0),
            1 => self.terms.get(&Vec::new()).copied(),
            _ => None,
        }
    }

    /// Returns `floor(self / divisor)`, exact by algebra where every coefficient divides.
    ///
    /// # Panics
    /// If `divisor` is below 1.
    pub fn floor_div(&self, divisor: i64) -> Self {
        assert!(divisor >= 1, "floor_div by {divisor}");
        if let Some(c) = self.as_const() {
            return Self::from(c.div_euclid(divisor));
        }
        // floor((d*a + b) / d) = a + floor(b / d): the divisible terms come out, so that equal
        // dimensions have one form.
        let (mut whole, mut rest) = (Self::default(), Self::default());
        for (product, &c) in &self.terms {
            let (q, r) = (c.div_euclid(divisor), c.rem_euclid(divisor));
            whole.add_term(product.clone(), q);
            rest.add_term(product.clone(), r);
        }
        if let Some(c) = rest.as_const() {
            return whole + Self::from(c.div_euclid(divisor));
        }
        // floor(g*a / (g*d)) = floor(a / d).
        let common = rest.terms.values().fold(divisor, |g, &c| gcd(g, c));
        let divisor = divisor / common;
        rest.terms.values_mut().for_each(|c| *c /= common);
        // floor(floor(a / b) / d) = floor(a / (b * d)).
        let atom = match rest.terms.iter().next() {
            Some((product, 1)) if rest.terms.len() == 1 && product.len() == 1 => {
                match &product[0] {
                    // The inner numbers may have a divisor in common with the product.
                    Atom::Floor(inner, by) => return whole + inner.floor_div(by * divisor),
                    Atom::Symbol(_) => Atom::Floor(rest, divisor),
                }
            }
            _ => Atom::Floor(rest, divisor),
        };
        whole.add_term(vec![atom], 1);
        whole
    }

    /// Returns `self / divisor`, if every coefficient divides evenly.
    pub fn exact_div(&self, divisor: i64) -> Option<Self> {
        (divisor != 0 && self.terms.values().all(|c| c % divisor == 0)).then(|| Self {
            terms: self
                .terms
                .iter()
                .map(|(p, c)| (p.clone(), c / divisor))
                .collect(),
        })
    }

    /// Replaces the symbols that `bindings` names; the others stay.
    pub fn bind(&self, bindings: &Bindings) -> Self {
        let mut sum = Self::default();
        for (product, &c) in &self.terms {
            let mut term = Self::from(c);
            for atom in product {
                term = term
                    * match atom {
                        Atom::Symbol(name) => bindings
                            .get(name)
                            .map_or_else(|| Self::symbol(name), |&v| Self::from(v)),
                        Atom::Floor(inner, by) => inner.bind(bindings).floor_div(*by),
                    };
            }
            sum = sum + term;
        }
        sum
    }

    /// Returns the value, if `bindings` names every symbol.
    pub fn eval(&self, bindings: &Bindings) -> Option<i64> {
        self.bind(bindings).as_const()
    }

    /// Returns the symbol's name, if the dimension is one bare symbol.
    pub fn as_symbol(&self) -> Option<&str> {
        match self.terms.iter().next() {
            Some((p, 1)) if self.terms.len() == 1 => match p.as_slice() {
                [Atom::Symbol(name)] => Some(name),
                _ => None,
            },
            _ => None,
        }
    }

    /// Solves `self = value` for the only symbol that `known` does not bind, where the dimension is
    /// linear in it. Returns the symbol's name and value. Returns `None` without such a single
    /// symbol or without a whole solution.
    pub fn solve(&self, value: i64, known: &Bindings) -> Option<(String, i64)> {
        let bound = self.bind(known);
        let (mut symbol, mut slope, mut offset) = (None, 0, 0);
        for (product, &c) in &bound.terms {
            match product.as_slice() {
                [] => offset = c,
                [Atom::Symbol(name)] if symbol.is_none() => {
                    (symbol, slope) = (Some(name.clone()), c);
                }
                _ => return None,
            }
        }
        let name = symbol?;
        let numerator = value - offset;
        (numerator % slope == 0).then(|| (name, numerator / slope))
    }

    /// Reads sums of products of integers, symbols and `floor(dim/int)`, such as
    /// `2*h*w + floor(h/2)*3 - 1`.
    ///
    /// # Errors
    /// The text is malformed; the error names the byte.
    pub fn parse(text: &str) -> Result<Self, DimParseError> {
        let mut p = Parser { text, at: 0 };
        let dim = p.sum()?;
        p.space();
        if p.at < text.len() {
            Err(p.fail("expected +, - or *"))
        } else {
            Ok(dim)
        }
    }

    fn add_term(&mut self, product: Vec<Atom>, c: i64) {
        if c == 0 {
            return;
        }
        let slot = self.terms.entry(product).or_insert(0);
        *slot += c;
        if *slot == 0 {
            self.terms.retain(|_, c| *c != 0);
        }
    }
}

/// Greatest common divisor of a positive and a non-negative number.
fn gcd(a: i64, b: i64) -> i64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

impl From<i64> for Dim {
    fn from(c: i64) -> Self {
        let mut d = Self::default();
        d.add_term(Vec::new(), c);
        d
    }
}

impl std::ops::Add for Dim {
    type Output = Self;
    fn add(mut self, rhs: Self) -> Self {
        for (p, c) in rhs.terms {
            self.add_term(p, c);
        }
        self
    }
}

impl std::ops::Sub for Dim {
    type Output = Self;
    fn sub(mut self, rhs: Self) -> Self {
        for (p, c) in rhs.terms {
            self.add_term(p, -c);
        }
        self
    }
}

impl std::ops::Mul for Dim {
    type Output = Self;
    fn mul(self, rhs: Self) -> Self {
        let mut out = Self::default();
        for (a, x) in &self.terms {
            for (b, y) in &rhs.terms {
                let mut product = a.clone();
                product.extend(b.iter().cloned());
                product.sort();
                out.add_term(product, x * y);
            }
        }
        out
    }
}

impl fmt::Display for Atom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Symbol(name) => f.write_str(name),
            Self::Floor(inner, by) => write!(f, "floor(({inner})/{by})"),
        }
    }
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.terms.is_empty() {
            return f.write_str("0");
        }
        // Longest products first: `3*h*w + 1`, as one writes it.
        let mut terms: Vec<_> = self.terms.iter().collect();
        terms.sort_by(|a, b| b.0.len().cmp(&a.0.len()).then(a.0.cmp(b.0)));
        for (i, (product, c)) in terms.into_iter().enumerate() {
            let sign = if *c < 0 { "-" } else { "+" };
            match (i, *c < 0) {
                (0, true) => f.write_str("-")?,
                (0, false) => {}
                _ => write!(f, " {sign} ")?,
            }
            let magnitude = c.abs();
            if product.is_empty() || magnitude != 1 {
                write!(
                    f,
                    "{magnitude}{}",
                    if product.is_empty() { "" } else { "*" }
                )?;
            }
            let atoms: Vec<String> = product.iter().map(ToString::to_string).collect();
            f.write_str(&atoms.join("*"))?;
        }
        Ok(())
    }
}

struct Parser<'t> {
    text: &'t str,
    at: usize,
}

impl Parser<'_> {
    fn fail(&self, reason: &'static str) -> DimParseError {
        DimParseError {
            text: self.text.to_owned(),
            at: self.at,
            reason,
        }
    }

    fn space(&mut self) {
        self.at += self.text[self.at..].len() - self.text[self.at..].trim_start().len();
    }

    fn eat(&mut self, token: &str) -> bool {
        self.space();
        let hit = self.text[self.at..].starts_with(token);
        if hit {
            self.at += token.len();
        }
        hit
    }

    fn sum(&mut self) -> Result<Dim, DimParseError> {
        let mut total = if self.eat("-") {
            Dim::default() - self.product()?
        } else {
            self.product()?
        };
        loop {
            if self.eat("+") {
                total = total + self.product()?;
            } else if self.eat("-") {
                total = total - self.product()?;
            } else {
                return Ok(total);
            }
        }
    }

    fn product(&mut self) -> Result<Dim, DimParseError> {
        let mut out = self.factor()?;
        while self.eat("*") {
            out = out * self.factor()?;
        }
        Ok(out)
    }

    fn factor(&mut self) -> Result<Dim, DimParseError> {
        if self.eat("floor(") {
            let grouped = self.eat("(");
            let inner = self.sum()?;
            if grouped && !self.eat(")") {
                return Err(self.fail("expected )"));
            }
            if !self.eat("/") {
                return Err(self.fail("expected /"));
            }
            let by = self
                .word()
                .parse()
                .ok()
                .filter(|&n: &i64| n >= 1)
                .ok_or_else(|| self.fail("expected a divisor of 1 or more"))?;
            return if self.eat(")") {
                Ok(inner.floor_div(by))
            } else {
                Err(self.fail("expected )"))
            };
        }
        let word = self.word();
        match word.chars().next() {
            None => Err(self.fail("expected a number, a symbol or floor(")),
            Some(c) if c.is_ascii_digit() => word
                .parse::<i64>()
                .map(Dim::from)
                .map_err(|_| self.fail("not a whole number")),
            Some(_) => Ok(Dim::symbol(word)),
        }
    }

    fn word(&mut self) -> &str {
        self.space();
        let rest = &self.text[self.at..];
        let end = rest
            .find(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
            .unwrap_or(rest.len());
        self.at += end;
        &rest[..end]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn dim(text: &str) -> Dim {
        Dim::parse(text).unwrap()
    }

    #[test]
    fn equal_expressions_have_one_normal_form() {
        for (a, b) in [
            ("3*h*w", "w*h*3"),
            ("h + h", "2*h"),
            ("h - h", "0"),
            (
                "2*h*w + floor(h/2)*floor(w/2)",
                "floor(w/2)*floor(h/2) + w*2*h",
            ),
            ("floor((4*h)/2)", "2*h"),
            ("floor((2*h + 3)/2)", "h + 1"),
            ("floor((floor(h/2))/2)", "floor(h/4)"),
            ("floor((floor((2*h)/3))/2)", "floor(h/3)"),
            ("floor((2*h - 4)/4) + 1", "floor(h/2)"),
        ] {
            assert_eq!(dim(a), dim(b), "{a} and {b}");
        }
    }

    #[test]
    fn malformed_text_names_the_place() {
        for (text, at) in [
            ("", 0),
            ("2*", 2),
            ("h w", 2),
            ("floor(h)", 7),
            ("floor(h/0)", 9),
        ] {
            assert_eq!(Dim::parse(text).unwrap_err().at, at, "{text:?}");
        }
    }

    #[test]
    fn one_unknown_is_solved_from_a_size() {
        let known = Bindings::from([("w".to_owned(), 8)]);
        assert_eq!(dim("2*h").solve(48, &known), Some(("h".into(), 24)));
        assert_eq!(dim("h*w + 8").solve(40, &known), Some(("h".into(), 4)));
        assert_eq!(dim("2*h").solve(47, &known), None);
        assert_eq!(dim("h*v").solve(4, &known), None);
    }

    fn any_dim() -> impl Strategy<Value = Dim> {
        let leaf = prop_oneof![
            (-6i64..7).prop_map(Dim::from),
            "[a-d]".prop_map(Dim::symbol)
        ];
        leaf.prop_recursive(4, 24, 2, |inner| {
            prop_oneof![
                (inner.clone(), inner.clone()).prop_map(|(a, b)| a + b),
                (inner.clone(), inner.clone()).prop_map(|(a, b)| a - b),
                (inner.clone(), inner.clone()).prop_map(|(a, b)| a * b),
                (inner, 1i64..5).prop_map(|(a, n)| a.floor_div(n)),
            ]
        })
    }

    proptest! {
        #[test]
        fn text_round_trips(d in any_dim()) {
            prop_assert_eq!(Dim::parse(&d.to_string()).unwrap(), d);
        }

        #[test]
        fn algebra_agrees_with_integers(
            a in any_dim(),
            b in any_dim(),
            v in prop::array::uniform4(1i64..9),
            n in 1i64..6,
        ) {
            let names = ["a", "b", "c", "d"].iter().map(ToString::to_string);
            let at: Bindings = names.zip(v).collect();
            let (x, y) = (a.eval(&at).unwrap(), b.eval(&at).unwrap());
            prop_assert_eq!((a.clone() + b.clone()).eval(&at), Some(x + y));
            prop_assert_eq!((a.clone() * b).eval(&at), Some(x * y));
            prop_assert_eq!(a.floor_div(n).eval(&at), Some(x.div_euclid(n)));
        }
    }
}
