//! Values as D-Bus messages carry them: little endian, each aligned to its size. D-Bus Specification, "Marshaling".

/// Values in the format of messages, little endian.
#[derive(Debug, Default)]
pub(super) struct Body {
    pub bytes: Vec<u8>,
}

impl Body {
    fn align(&mut self, to: usize) {
        self.bytes.resize(self.bytes.len().next_multiple_of(to), 0);
    }

    pub fn byte(&mut self, value: u8) -> &mut Body {
        self.bytes.push(value);
        self
    }

    pub fn u32(&mut self, value: u32) -> &mut Body {
        self.align(4);
        self.bytes.extend(value.to_le_bytes());
        self
    }

    pub fn u64(&mut self, value: u64) -> &mut Body {
        self.align(8);
        self.bytes.extend(value.to_le_bytes());
        self
    }

    pub fn bool(&mut self, value: bool) -> &mut Body {
        self.u32(value.into())
    }

    pub fn string(&mut self, value: &str) -> &mut Body {
        self.u32(value.len() as u32);
        self.bytes.extend(value.as_bytes());
        self.byte(0)
    }

    pub fn signature(&mut self, value: &str) -> &mut Body {
        self.byte(value.len() as u8);
        self.bytes.extend(value.as_bytes());
        self.byte(0)
    }

    pub fn structure(&mut self) -> &mut Body {
        self.align(8);
        self
    }

    /// An array whose elements are aligned to `alignment` and written by `elements`.
    pub fn array(&mut self, alignment: usize, elements: impl FnOnce(&mut Body)) -> &mut Body {
        self.u32(0);
        let length_at = self.bytes.len() - 4;
        self.align(alignment);
        let start = self.bytes.len();
        elements(self);
        let length = (self.bytes.len() - start) as u32;
        self.bytes[length_at..length_at + 4].copy_from_slice(&length.to_le_bytes());
        self
    }
}

/// Reads values in the format of messages.
pub(super) struct Values<'a> {
    pub bytes: &'a [u8],
    pub at: usize,
}

impl<'a> Values<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let taken = self.bytes.get(self.at..self.at.checked_add(count)?)?;
        self.at += count;
        Some(taken)
    }

    pub fn align(&mut self, to: usize) {
        self.at = self.at.next_multiple_of(to);
    }

    pub fn byte(&mut self) -> Option<u8> {
        self.take(1).map(|byte| byte[0])
    }

    pub fn u32(&mut self) -> Option<u32> {
        self.align(4);
        self.take(4)?.try_into().ok().map(u32::from_le_bytes)
    }

    pub fn string(&mut self) -> Option<String> {
        let length = self.u32()? as usize;
        let text = self.take(length)?;
        self.byte()?;
        String::from_utf8(text.to_vec()).ok()
    }

    pub fn signature(&mut self) -> Option<&'a [u8]> {
        let length = self.byte()?.into();
        let text = self.take(length)?;
        self.byte()?;
        Some(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_aligned_and_arrays_have_their_length() {
        let mut body = Body::default();
        body.byte(1).string("ab").array(8, |array| {
            array.u64(7);
        });
        let expected = [
            &[1, 0, 0, 0][..],
            &[2, 0, 0, 0],
            b"ab\0\0",
            &[8, 0, 0, 0],
            &[7, 0, 0, 0, 0, 0, 0, 0],
        ]
        .concat();
        assert_eq!(body.bytes, expected);
    }
}
