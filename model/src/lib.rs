//! A register-accurate model of the Arm SMMUv1 and SMMUv2.
#![no_std]
