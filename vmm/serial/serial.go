// Package serial has the devices of one byte that a PC has and a kernel looks
// for before it looks for anything else: a serial port, a keyboard
// controller, and the registers by which a guest turns itself off or starts
// anew, or is asked to.
//
// Each is some registers with Read and Write by offset, as an I/O port's exit
// tells them, and callbacks for what it causes. A Read or Write of more than
// one byte is of as many registers, one after the other, as on an ISA bus. All
// may be called from any number of CPUs at once. Callbacks are called with
// the device's lock held: they must not wait, nor call the device.
//
// The devices trust no guest: any sequence of any accesses costs bounded time
// and memory and changes nothing but the device's own state. They cannot see
// the guest's memory. They do not survive a guest's reset; the machine makes
// new ones.
package serial

// register is a device of byte-wide registers.
type register interface {
	read(offset uint64) byte
	write(offset uint64, v byte)
}

func readAll(r register, offset uint64, p []byte) {
	for i := range p {
		p[i] = r.read(offset + uint64(i))
	}
}

func writeAll(r register, offset uint64, p []byte) {
	for i, v := range p {
		r.write(offset+uint64(i), v)
	}
}
