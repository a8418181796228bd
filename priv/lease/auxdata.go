package lease

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// sizeofAuxdata is that of struct tpacket_auxdata; what it begins with is the
// status.
const sizeofAuxdata = 20

// auxdata takes the status of a frame out of what the kernel says beside it.
func auxdata(oob []byte) (status uint32, ok bool) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return 0, false
	}
	for _, m := range messages {
		if m.Header.Level == unix.SOL_PACKET && m.Header.Type == unix.PACKET_AUXDATA && len(m.Data) >= sizeofAuxdata {
			return binary.NativeEndian.Uint32(m.Data), true
		}
	}
	return 0, false
}

// networkOrder turns the bytes of a number that the kernel has in network
// order, or wants so.
func networkOrder(n uint16) uint16 {
	return binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, n))
}
