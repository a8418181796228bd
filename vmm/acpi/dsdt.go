package acpi

import (
	"fmt"

	"vmfs/vmm/serial"
)

// dsdt is the devices, and how the machine sleeps (5.2.11.1, chapter 6).
func (c *Config) dsdt() []byte {
	devices := [][]byte{c.serial(), c.keyboard(), powerButton(), c.events()}
	for i, w := range c.Virtio {
		devices = append(devices, w.device(i))
	}
	t := make(table, headerSize)
	t = append(t, scope("_SB_", devices...)...)
	// _S5 (7.4.2.5): what goes to SLEEP_CONTROL_REG, twice; two reserved.
	t = append(t, named("_S5_", pack(integer(serial.SleepType), integer(0), integer(0), integer(0)))...)
	return finish(t, "DSDT", 2) // integers have 64 bits
}

// device is what Linux's virtio_mmio binds to; memory is coherent (6.2.17).
func (w Window) device(n int) []byte {
	return device(fmt.Sprintf("VR%02X", n),
		named("_HID", text("LNRO0005")),
		named("_UID", integer(uint32(n))),
		named("_CCA", integer(1)),
		named("_CRS", resources(memory(w.Addr, w.Size), interrupt(w.GSI))))
}

func (c *Config) serial() []byte {
	return device("COM1",
		named("_HID", eisaID("PNP0501")),
		named("_UID", integer(1)),
		named("_CRS", resources(ports(c.Serial.Port, serial.UARTSize), interrupt(c.Serial.GSI))))
}

func (c *Config) keyboard() []byte {
	return device("KBD_",
		named("_HID", eisaID("PNP0303")),
		named("_CRS", resources(ports(0x60, 1), ports(0x64, 1), interrupt(c.Keyboard))))
}

// powerButton is a control method one (4.8.3.1.2); events presses it.
func powerButton() []byte {
	return device("PWRB", named("_HID", eisaID("PNP0C0C")))
}

// events is the generic event device (5.6.9): its interrupt runs _EVT, which
// reads what happened.
func (c *Config) events() []byte {
	const pressed = 0x80
	return device("GED_",
		named("_HID", text("ACPI0013")),
		named("_UID", integer(0)),
		named("_CRS", resources(interrupt(c.Events.GSI))),
		byteField("EVTR", "EVTB", c.Events.Port),
		method("_EVT", 1,
			store(path("EVTB"), local0),
			when(and(local0, integer(serial.PowerButton)), notify("PWRB", pressed))))
}
