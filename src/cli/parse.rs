//! Sizes as people write them: `10G` is 10 GiB, as in qemu-img and LVM.

use crate::units::{SECTOR_BYTES, VOLUME_BYTES_MAX};

/// Digits after the point that are understood: more is a mistake, or needs no point.
const FRACTION_DIGITS_MAX: usize = 9;

/// Bytes from `4096`, `10G`, `1.5T`, `512MiB`, `64k`: powers of 1024. Not zero, and a whole number of bytes.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let refused = |why: &str| format!("{:?} is no size: {why}", text.chars().take(40).collect::<String>());
    let form = "write digits and one of K, M, G, T, P, E, as 10G";
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let shift = match unit.to_ascii_uppercase().as_str() {
        "" | "B" => 0,
        "K" | "KIB" => 10,
        "M" | "MIB" => 20,
        "G" | "GIB" => 30,
        "T" | "TIB" => 40,
        "P" | "PIB" => 50,
        "E" | "EIB" => 60,
        _ => return Err(refused(form)),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if !digits(whole) || !digits(fraction) {
        return Err(refused(form));
    }
    if whole.len() > 20 || fraction.len() > FRACTION_DIGITS_MAX {
        return Err(refused("it has too many digits"));
    }
    let too_large = || refused("it is too large");
    let scale = 10u128.pow(fraction.len() as u32);
    let number = whole.parse::<u128>().map_err(|_| too_large())? * scale
        + fraction.parse::<u128>().map_err(|_| too_large())?;
    let scaled = number.checked_mul(1 << shift).ok_or_else(too_large)?;
    if !scaled.is_multiple_of(scale) {
        return Err(refused("it is not a whole number of bytes"));
    }
    let bytes = u64::try_from(scaled / scale).map_err(|_| too_large())?;
    if bytes == 0 {
        return Err(refused("it is zero"));
    }
    Ok(bytes)
}

/// The size of a disk: as [`parse_bytes`], a multiple of 4096, at most 64 TiB.
pub fn parse_volume_size(text: &str) -> Result<u64, String> {
    let bytes = parse_bytes(text)?;
    if bytes > VOLUME_BYTES_MAX {
        return Err(format!("{text} is too large: a volume has at most 64T"));
    }
    if !bytes.is_multiple_of(SECTOR_BYTES) {
        let nearest = bytes.next_multiple_of(SECTOR_BYTES);
        return Err(format!("{text} is not a multiple of {SECTOR_BYTES} bytes; the next one is {nearest}"));
    }
    Ok(bytes)
}

/// Bytes for people: `10G`, `1.5M`, `512`; one digit after the point.
pub fn size_text(bytes: u64) -> String {
    let units = ["", "K", "M", "G", "T", "P", "E"];
    let step = (bytes.max(1).ilog2() / 10) as usize;
    let (whole, tenths) = (bytes >> (10 * step), ((u128::from(bytes) * 10) >> (10 * step)) % 10);
    match tenths {
        0 => format!("{whole}{}", units[step]),
        _ => format!("{whole}.{tenths}{}", units[step]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_powers_of_1024() {
        for (text, bytes) in [
            ("4096", 4096),
            ("10G", 10 << 30),
            ("10GiB", 10 << 30),
            ("1.5T", 3 << 39),
            ("64k", 64 << 10),
            ("0.5M", 1 << 19),
            ("1E", 1 << 60),
            ("15E", 15 << 60),
        ] {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
        assert_eq!(parse_volume_size("64T"), Ok(64 << 40));
    }

    #[test]
    fn hostile_sizes_are_refused() {
        for text in [
            "",
            "0",
            "0G",
            "0.0",
            "G",
            "-1",
            "+1",
            "1e3",
            "10.5X",
            "16E",
            "99999999999999999999E",
            "1.G",
            ".5G",
            "1.2.3G",
            "1 G",
            "10GB",
            "0x10",
            "1.0000000001K",
            "0.3K",
            "١G",
            "NaN",
            "inf",
            "10G\u{0}",
            &"9".repeat(10_000),
        ] {
            assert!(parse_bytes(text).is_err(), "{text}");
        }
        for text in ["9E", "65T", "1", "4097", "10.5X", "0"] {
            assert!(parse_volume_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_print_short() {
        for (bytes, text) in
            [(0, "0"), (512, "512"), (10 << 30, "10G"), (3 << 39, "1.5T"), (u64::MAX, "15.9E")]
        {
            assert_eq!(size_text(bytes), text);
        }
    }
}
