package acpi

import "slices"

// An encoder for as much of the ACPI machine language (20.2) as a DSDT of
// ours needs. Each function returns the bytes of one object.

// pkgLength is a length that counts itself (20.2.4), and what it is of.
func pkgLength(body []byte) []byte {
	n := len(body)
	switch {
	case n+1 < 1<<6:
		return append([]byte{byte(n + 1)}, body...)
	case n+2 < 1<<12:
		n += 2
		return append([]byte{1<<6 | byte(n&15), byte(n >> 4)}, body...)
	case n+3 < 1<<20:
		n += 3
		return append([]byte{2<<6 | byte(n&15), byte(n >> 4), byte(n >> 12)}, body...)
	}
	n += 4
	return append([]byte{3<<6 | byte(n&15), byte(n >> 4), byte(n >> 12), byte(n >> 20)}, body...)
}

func block(op []byte, parts ...[]byte) []byte {
	return append(slices.Clone(op), pkgLength(slices.Concat(parts...))...)
}

// path is the name of an object (20.2.2): one segment, of four letters.
func path(s string) []byte { return []byte(s) }

func scope(name string, objects ...[]byte) []byte {
	return block([]byte{0x10}, path(name), slices.Concat(objects...))
}

func device(name string, objects ...[]byte) []byte {
	return block([]byte{0x5b, 0x82}, path(name), slices.Concat(objects...))
}

func named(name string, value []byte) []byte {
	return slices.Concat([]byte{0x08}, path(name), value)
}

// method of so many arguments, serialized.
func method(name string, args byte, body ...[]byte) []byte {
	const serialized = 1 << 3
	return block([]byte{0x14}, path(name), []byte{args | serialized}, slices.Concat(body...))
}

// integer is the shortest encoding of v (20.2.3).
func integer(v uint32) []byte {
	switch {
	case v <= 1:
		return []byte{byte(v)} // ZeroOp, OneOp
	case v < 1<<8:
		return []byte{0x0a, byte(v)}
	case v < 1<<16:
		return le.AppendUint16([]byte{0x0b}, uint16(v))
	}
	return le.AppendUint32([]byte{0x0c}, v)
}

func text(s string) []byte { return slices.Concat([]byte{0x0d}, []byte(s), []byte{0}) }

// eisaID is a name like PNP0501 as a number (19.3.4): three letters of five
// bits, four hexadecimal digits, big-endian.
func eisaID(id string) []byte {
	v := uint32(id[0]-'@')<<26 | uint32(id[1]-'@')<<21 | uint32(id[2]-'@')<<16
	for i := range 4 {
		v |= digit(id[3+i]) << (12 - 4*i)
	}
	return []byte{0x0c, byte(v >> 24), byte(v >> 16), byte(v >> 8), byte(v)}
}

func digit(c byte) uint32 {
	if c >= 'A' {
		return uint32(c-'A') + 10
	}
	return uint32(c - '0')
}

func pack(elements ...[]byte) []byte {
	return block([]byte{0x12}, []byte{byte(len(elements))}, slices.Concat(elements...))
}

// resources is a buffer of resource descriptors (6.4) with their end.
func resources(descriptors ...[]byte) []byte {
	list := append(slices.Concat(descriptors...), 0x79, 0)
	return block([]byte{0x11}, integer(uint32(len(list))), list)
}

// memory is 32-bit Fixed Memory Range Descriptor (6.4.3.4), writable.
func memory(addr, size uint32) []byte {
	d := []byte{0x86, 9, 0, 1}
	return le.AppendUint32(le.AppendUint32(d, addr), size)
}

// ports is an I/O Port Descriptor (6.4.2.5) of 16-bit ports.
func ports(first uint16, n byte) []byte {
	d := []byte{0x47, 1}
	return append(le.AppendUint16(le.AppendUint16(d, first), first), 1, n)
}

// interrupt is an Extended Interrupt Descriptor (6.4.3.6).
func interrupt(l Line) []byte {
	const consumer, edge = 1 << 0, 1 << 1 // and active high, exclusive
	return le.AppendUint32([]byte{0x89, 6, 0, consumer | edge, 1}, uint32(l))
}

// byteField is a region of one byte at an I/O port, with one field.
func byteField(region, field string, port uint16) []byte {
	const systemIO, byteAccess = 1, 1
	r := slices.Concat([]byte{0x5b, 0x80}, path(region), []byte{systemIO}, integer(uint32(port)), integer(1))
	f := block([]byte{0x5b, 0x81}, path(region), []byte{byteAccess}, path(field), []byte{8})
	return append(r, f...)
}

// local0 is the variable of that name.
var local0 = []byte{0x60}

func store(from, to []byte) []byte { return slices.Concat([]byte{0x70}, from, to) }

// and is a & b, stored nowhere.
func and(a, b []byte) []byte { return slices.Concat([]byte{0x7b}, a, b, []byte{0}) }

func when(condition []byte, body ...[]byte) []byte {
	return block([]byte{0xa0}, condition, slices.Concat(body...))
}

func notify(object string, value uint32) []byte {
	return slices.Concat([]byte{0x86}, path(object), integer(value))
}
