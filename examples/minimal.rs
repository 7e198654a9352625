//! The shortest way from an SMMU to a device in a guest, on the modelled hardware: `cargo run --example minimal`.

use std::error::Error;
use std::sync::Arc;

use iommu_assign::assign::{
    DeviceKey, DeviceSpec, FaultLine, FirmwareMarks, IommuKey, PhysicalAddress, Service, Source, Stream, StreamId,
    StreamMask,
};
use iommu_assign::smmu::{Architecture, EmptyRoot, Masters, Smmu, SmmuConfig};
use iommu_assign::sync::Spin;
use machine::{Machine, Stage2Tables};
use smmu_model::Config;

const SMMU: IommuKey = IommuKey::new(0x5000_0000);
const STREAM: StreamId = StreamId::new(0x10);

fn main() -> Result<(), Box<dyn Error>> {
    // The hardware: memory, and an SMMUv2 in front of it. On a board: `Mmio`, and what the device tree says of it.
    let machine = Machine::new();
    let model = Config::generic_v2();
    let empty = EmptyRoot { address: PhysicalAddress::new(0x9000_0000), size: 0x10_0000 };
    let config = SmmuConfig::new(SMMU, u64::from(model.bank_base()) * 2, Architecture::V2, empty);
    let registers = machine.add_smmu(SMMU, model);

    // The service: from the probe on every stream faults.
    let service = Service::<Spin>::new(Box::new(FirmwareMarks));
    let smmu = Smmu::probe(config, registers, Arc::new(Masters::<Spin>::new()))?;
    service.register_iommu(Arc::new(smmu))?;

    // A device, which firmware marks for passing through, and a guest with one page.
    let stream = Stream::new(SMMU, STREAM, StreamMask::NONE);
    let spec = DeviceSpec::new(DeviceKey::new(Source::Dt, 1), "/soc/dma@51000000".into(), vec![stream]);
    let device = service.add(DeviceSpec { passthrough: true, ..spec })?;
    let mut tables = Stage2Tables::new(&machine, 0x8000_0000, 40, 40);
    tables.map(0x4000_0000, 0x1_0000_0000, true);
    let guest = service.create_domain("guest A".into(), tables.stage2())?;

    let dma = |when: &str| match machine.dma_write(SMMU, STREAM, 0x4000_0000) {
        Some(reached) => println!("{when:<14} a write to 0x40000000 by {}: {reached}", device.label()),
        None => println!("{when:<14} no such SMMU"),
    };
    dma("added:");
    service.assign(&device, &guest)?;
    dma("assigned:");
    drop(service.deassign(&device)?);
    dma("deassigned:");
    // What faulted, with names.
    let _ = service.handle_fault(SMMU, FaultLine::Global, &mut |fault| println!("fault:         {fault}"))?;

    service.remove(&device)?;
    service.destroy_domain(&guest)?;
    service.audit(&mut |finding| println!("audit:         {finding}"));
    let mut left = String::new();
    service.write_tree(&mut left)?;
    println!("left:          {} devices", left.lines().count());
    Ok(())
}
