//! Dates as Python's `strftime` writes them in the C locale.

use jiff::{
    ZonedDateTime,
    fmt::strtime::{BrokenDownTime, Config, PosixCustom},
};

/// The C library's conversions. What is not one of them is left as it is.
const CONVERSIONS: &str = "aAbBcCdDeFgGhHIjklmMnpPrRsStTuUVwWxXyY%";

/// `datetime.strftime` of a time without a zone, which transformers passes on:
/// `%z` and `%Z` are empty.
pub(super) fn strftime(format: &str, time: &ZonedDateTime) -> String {
    let config = Config::new().custom(PosixCustom::new());
    let broken_down = BrokenDownTime::from(time);
    let mut out = String::new();
    let mut rest = format;
    while let Some(start) = rest.find('%') {
        out.push_str(&rest[..start]);
        rest = &rest[start..];
        // Flags and a width; E and O choose other forms in other locales.
        let spec = rest[1..].trim_start_matches(['-', '_', '0', '^', '#']);
        let spec = spec.trim_start_matches(|c: char| c.is_ascii_digit());
        let flags = &rest[1..rest.len() - spec.len()];
        let spec = spec.strip_prefix(['E', 'O', ':']).unwrap_or(spec);
        let Some(conversion) = spec.chars().next() else { break };
        let len = rest.len() - spec.len() + conversion.len_utf8();
        // A width beyond any sense would be as many bytes.
        let width = flags.trim_start_matches(['-', '_', '0', '^', '#']).parse().unwrap_or(0_u32);
        let written = match conversion {
            'z' | 'Z' => Some(String::new()),
            'f' => Some(format!("{:06}", time.subsec_nanosecond() / 1000)),
            c if CONVERSIONS.contains(c) && width <= 255 => {
                broken_down.to_string_with_config(&config, format!("%{flags}{c}")).ok()
            }
            _ => None,
        };
        match written {
            Some(text) => out.push_str(&text),
            None => out.push_str(&rest[..len]),
        }
        rest = &rest[len..];
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What CPython 3.11 with glibc gives, for two times.
    const CASES: &[(&str, &str, &str)] = &[
        ("%a", "Fri", "Thu"),
        ("%A", "Friday", "Thursday"),
        ("%b", "Feb", "Dec"),
        ("%B", "February", "December"),
        ("%c", "Fri Feb  9 05:07:09 2024", "Thu Dec 31 23:00:00 2026"),
        ("%C", "20", "20"),
        ("%d", "09", "31"),
        ("%D", "02/09/24", "12/31/26"),
        ("%e", " 9", "31"),
        ("%F", "2024-02-09", "2026-12-31"),
        ("%g", "24", "26"),
        ("%G", "2024", "2026"),
        ("%h", "Feb", "Dec"),
        ("%H", "05", "23"),
        ("%I", "05", "11"),
        ("%j", "040", "365"),
        ("%k", " 5", "23"),
        ("%l", " 5", "11"),
        ("%m", "02", "12"),
        ("%M", "07", "00"),
        ("%n", "\n", "\n"),
        ("%p", "AM", "PM"),
        ("%P", "am", "pm"),
        ("%r", "05:07:09 AM", "11:00:00 PM"),
        ("%R", "05:07", "23:00"),
        ("%S", "09", "00"),
        ("%t", "\t", "\t"),
        ("%T", "05:07:09", "23:00:00"),
        ("%u", "5", "4"),
        ("%U", "05", "52"),
        ("%V", "06", "53"),
        ("%w", "5", "4"),
        ("%W", "06", "52"),
        ("%x", "02/09/24", "12/31/26"),
        ("%X", "05:07:09", "23:00:00"),
        ("%y", "24", "26"),
        ("%Y", "2024", "2026"),
        ("%z", "", ""),
        ("%Z", "", ""),
        ("%%", "%", "%"),
        ("%f", "012345", "000000"),
        ("%-d", "9", "31"),
        ("%-m", "2", "12"),
        ("%-I", "5", "11"),
        ("%_d", " 9", "31"),
        ("%^a", "FRI", "THU"),
        ("%^B", "FEBRUARY", "DECEMBER"),
        ("%#p", "am", "pm"),
        ("%3d", "009", "031"),
        ("%Ey", "24", "26"),
        ("%Od", "09", "31"),
        ("%d %b %Y", "09 Feb 2024", "31 Dec 2026"),
        ("%A, %B %d, %Y", "Friday, February 09, 2024", "Thursday, December 31, 2026"),
        ("today: %Y-%m-%dT%H:%M:%S", "today: 2024-02-09T05:07:09", "today: 2026-12-31T23:00:00"),
        ("%Q", "%Q", "%Q"),
        ("%q %i %L", "%q %i %L", "%q %i %L"),
        ("%", "%", "%"),
        ("100%", "100%", "100%"),
        ("%%d", "%d", "%d"),
        ("%05d", "00009", "00031"),
        ("%E", "%E", "%E"),
        ("%-", "%-", "%-"),
    ];

    #[test]
    fn every_conversion_is_pythons() {
        for (i, time) in ["2024-02-09T05:07:09.012345", "2026-12-31T23:00:00"].iter().enumerate() {
            let time: jiff::civil::DateTime = time.parse().expect("a time");
            let time = time.to_zoned_datetime(jiff::tz::TimeZone::UTC).expect("it is in range");
            for (format, first, second) in CASES {
                assert_eq!(strftime(format, &time), [*first, *second][i], "{format}");
            }
        }
    }
}
