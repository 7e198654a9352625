//! Writes device-tree blobs, malformed ones above all: nothing here is checked.

#![allow(dead_code, reason = "each test binary uses a part")]

use iommu_assign::assign::{IommuKey, Stream, StreamId, StreamMask};
use iommu_assign::dt::{Board, DtError, NodeFault};

/// A blob in the making.
pub(crate) struct Builder {
    /// The structure block so far.
    pub(crate) structure: Vec<u8>,
    /// The strings block so far.
    pub(crate) strings: Vec<u8>,
    /// Whether a NOP token goes before every token.
    pub(crate) nops: bool,
    /// Format version: 17, or 16 whose header does not say how long the structure is.
    pub(crate) version: u32,
}

impl Builder {
    pub(crate) fn new() -> Self {
        Self { structure: Vec::new(), strings: Vec::new(), nops: false, version: 17 }
    }

    /// A tree whose root has two cells for addresses and two for sizes, as most boards' have.
    pub(crate) fn board() -> Self {
        let mut board = Self::new();
        board.begin("").cells("#address-cells", &[2]).cells("#size-cells", &[2]);
        board
    }

    pub(crate) fn token(&mut self, token: u32) -> &mut Self {
        if self.nops {
            self.structure.extend(NOP.to_be_bytes());
        }
        self.structure.extend(token.to_be_bytes());
        self
    }

    pub(crate) fn begin(&mut self, name: &str) -> &mut Self {
        self.token(BEGIN_NODE);
        self.structure.extend(name.bytes().chain([0]));
        self.align()
    }

    pub(crate) fn end(&mut self) -> &mut Self {
        self.token(END_NODE)
    }

    pub(crate) fn property(&mut self, name: &str, value: &[u8]) -> &mut Self {
        let offset = u32::try_from(self.strings.len()).unwrap();
        self.strings.extend(name.bytes().chain([0]));
        self.raw_property(u32::try_from(value.len()).unwrap(), offset, value)
    }

    pub(crate) fn raw_property(&mut self, length: u32, name_offset: u32, value: &[u8]) -> &mut Self {
        self.token(PROPERTY);
        self.structure.extend(length.to_be_bytes());
        self.structure.extend(name_offset.to_be_bytes());
        self.structure.extend(value);
        self.align()
    }

    pub(crate) fn cells(&mut self, name: &str, cells: &[u32]) -> &mut Self {
        let value: Vec<u8> = cells.iter().flat_map(|cell| cell.to_be_bytes()).collect();
        self.property(name, &value)
    }

    pub(crate) fn strings(&mut self, name: &str, strings: &[&str]) -> &mut Self {
        let value: Vec<u8> = strings.iter().flat_map(|string| string.bytes().chain([0])).collect();
        self.property(name, &value)
    }

    /// An SMMUv2 at `base` with this phandle and this many specifier cells, complete and closed.
    pub(crate) fn smmu(&mut self, base: u32, phandle: u32, cells: u32) -> &mut Self {
        self.open_smmu(&format!("iommu@{base:x}"))
            .cells("reg", &[0, base, 0, 0x10000])
            .cells("#iommu-cells", &[cells])
            .cells("phandle", &[phandle])
            .end()
    }

    /// An SMMUv2 without interrupts, which lacks `reg`, `#iommu-cells` and its end.
    pub(crate) fn open_smmu(&mut self, name: &str) -> &mut Self {
        self.begin(name).strings("compatible", &["arm,smmu-v2"]).cells("#global-interrupts", &[0])
    }

    /// Ends the root and the structure.
    pub(crate) fn finish(&mut self) -> Vec<u8> {
        self.end().token(END).blob()
    }

    /// The blob as it stands.
    pub(crate) fn blob(&self) -> Vec<u8> {
        let header = 40_u32;
        let reservations = [0_u8; 16];
        let structure_at = header + 16;
        let strings_at = structure_at + u32::try_from(self.structure.len()).unwrap();
        let total = strings_at + u32::try_from(self.strings.len()).unwrap();
        let fields = [
            0xd00d_feed,
            total,
            structure_at,
            strings_at,
            header,
            self.version,
            16,
            0,
            total - strings_at,
            if self.version >= 17 { strings_at - structure_at } else { 0x5555_5555 },
        ];
        let header = fields.iter().flat_map(|field: &u32| field.to_be_bytes());
        header.chain(reservations).chain(self.structure.iter().copied()).chain(self.strings.iter().copied()).collect()
    }

    fn align(&mut self) -> &mut Self {
        self.structure.resize(self.structure.len().next_multiple_of(4), 0);
        self
    }
}

/// The path and cause of the error that a board gives.
pub(crate) fn fault(board: &mut Builder) -> (String, NodeFault) {
    match Board::read(&board.finish()) {
        Err(DtError::Node { path, cause }) => (path, cause),
        other => panic!("{other:?}"),
    }
}

pub(crate) fn at(path: &str, cause: NodeFault) -> (String, NodeFault) {
    (path.to_owned(), cause)
}

pub(crate) fn stream(id: u32, mask: u32) -> Stream {
    Stream::new(IommuKey::new(0x1000), StreamId::new(id), StreamMask::new(mask))
}

/// An SMMU at 0x1000 with phandle 1, and behind it `/dma` with these `iommus`.
pub(crate) fn with_iommus(cells: u32, iommus: &[u32]) -> Builder {
    let mut board = Builder::board();
    board.smmu(0x1000, 1, cells).begin("dma").cells("iommus", iommus).end();
    board
}

/// The same with an `iommu-map`.
pub(crate) fn with_map(cells: u32, map: &[u32]) -> Builder {
    let mut board = Builder::board();
    board.smmu(0x1000, 1, cells).begin("bus").cells("iommu-map", map).end();
    board
}

pub(crate) const BEGIN_NODE: u32 = 1;
pub(crate) const END_NODE: u32 = 2;
pub(crate) const PROPERTY: u32 = 3;
pub(crate) const NOP: u32 = 4;
pub(crate) const END: u32 = 9;
