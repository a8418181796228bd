package virtio

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Feature bits of a network device (5.1.3).
const (
	netCsum      = 1 << 0
	netGuestCsum = 1 << 1
	netMTU       = 1 << 3
	netMAC       = 1 << 5
	netGuestTSO4 = 1 << 7
	netGuestTSO6 = 1 << 8
	netGuestECN  = 1 << 9
	netHostTSO4  = 1 << 11
	netHostTSO6  = 1 << 12
	netHostECN   = 1 << 13
	netMrgRxbuf  = 1 << 15
	netStatus    = 1 << 16

	netGuestGSO = netGuestTSO4 | netGuestTSO6
	netOffload  = netCsum | netGuestCsum | netGuestGSO | netGuestECN | netHostTSO4 | netHostTSO6 | netHostECN
)

// The queues (5.1.2).
const (
	netRx = 0
	netTx = 1
)

// Sizes in bytes, of struct virtio_net_hdr and of a packet with it (5.1.6.3).
const (
	netHeader    = 12
	netMaxFrame  = netHeader + 14 + 4 + 1500 // with a VLAN tag
	netMaxPacket = netHeader + 65589
)

// Offsets in struct virtio_net_hdr.
const (
	netHdrFlags      = 0
	netHdrNumBuffers = 10
)

const (
	netConfigSize = 12
	netLinkUp     = 1
	netMaxIovecs  = 1024 // UIO_MAXIOV, of one system call
	minMTU        = 68
)

// netRetry is how long a tap that fails is left alone.
const netRetry = 100 * time.Millisecond

// NetConfig is a network interface.
type NetConfig struct {
	// FD is a tap, made with IFF_TAP, IFF_NO_PI and IFF_VNET_HDR, or a
	// socket whose messages are a virtio_net_hdr of 12 bytes and a frame. It
	// is the caller's, to be closed after the MMIO; NewNet makes it
	// non-blocking.
	FD  int
	MAC [6]byte
	// MTU is the largest packet without offloads, in bytes after the
	// Ethernet header; 0 leaves it to the guest, which takes 1500.
	MTU uint16
}

// Net is a network device (5.1) with one pair of queues. Packets go between
// the tap and the guest's memory without a copy of ours, with the header as
// the guest wrote it: what it asks of segmentation and checksums, the host's
// kernel checks.
//
// What the tap does not take is lost, as on a wire.
type Net struct {
	cfg      NetConfig
	tap      bool
	host     Host
	down     atomic.Bool
	features uint64 // since Start
	bounce   []byte // a packet for a guest with too few buffers
}

// NewNet makes a network device. A tap is set to 12 byte headers, which needs
// no capability.
func NewNet(cfg NetConfig) (*Net, error) {
	if cfg.MTU != 0 && cfg.MTU < minMTU {
		return nil, fmt.Errorf("net: MTU %d: less than %d", cfg.MTU, minMTU)
	}
	n := &Net{cfg: cfg}
	var err error
	if n.tap, err = prepareTap(cfg.FD); err != nil {
		return nil, err
	}
	if err := unix.SetNonblock(cfg.FD, true); err != nil {
		return nil, fmt.Errorf("net: %w", err)
	}
	return n, nil
}

// prepareTap is whether fd is a tap, and sets its header's size.
func prepareTap(fd int) (bool, error) {
	ifr, err := unix.NewIfreq("")
	if err != nil {
		return false, fmt.Errorf("net: %w", err)
	}
	err = unix.IoctlIfreq(fd, unix.TUNGETIFF, ifr)
	if errors.Is(err, unix.ENOTTY) || errors.Is(err, unix.EOPNOTSUPP) {
		return false, checkSocket(fd)
	}
	if err != nil {
		return false, fmt.Errorf("net: tap: %w", err)
	}
	const want = unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR
	if ifr.Uint16()&(unix.IFF_TUN|want) != want {
		return false, fmt.Errorf("net: tap %s: flags %#x are not those of a tap with vnet headers only", ifr.Name(), ifr.Uint16())
	}
	if err := unix.IoctlSetPointerInt(fd, unix.TUNSETVNETHDRSZ, netHeader); err != nil {
		return false, fmt.Errorf("net: tap %s: header of %d bytes: %w", ifr.Name(), netHeader, err)
	}
	return true, nil
}

// checkSocket refuses what is no socket that keeps messages apart.
func checkSocket(fd int) error {
	kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil {
		return fmt.Errorf("net: neither a tap nor a socket: %w", err)
	}
	if kind != unix.SOCK_DGRAM && kind != unix.SOCK_SEQPACKET {
		return fmt.Errorf("net: a socket of type %d does not keep packets apart", kind)
	}
	return nil
}

// SetLink pulls the plug, or puts it in (5.1.4: VIRTIO_NET_S_LINK_UP).
// Without a link, packets are dropped in both directions.
func (n *Net) SetLink(up bool) {
	if n.down.Swap(!up) == up && n.host != nil {
		n.host.ConfigChanged()
	}
}

func (n *Net) ID() uint32           { return idNet }
func (n *Net) Attach(host Host)     { n.host = host }
func (n *Net) QueueSizes() []uint16 { return []uint16{MaxQueueSize, MaxQueueSize} }

func (n *Net) Features() uint64 {
	f := uint64(netMAC | netStatus | netMrgRxbuf | netOffload)
	if n.cfg.MTU != 0 {
		f |= netMTU
	}
	return f
}

// ReadConfig is struct virtio_net_config (5.1.4), up to its MTU.
func (n *Net) ReadConfig(off int, p []byte) {
	var c [netConfigSize]byte
	copy(c[:], n.cfg.MAC[:])
	if !n.down.Load() {
		c[6] = netLinkUp
	}
	c[8] = 1 // max_virtqueue_pairs
	binary.LittleEndian.PutUint16(c[10:], n.cfg.MTU)
	copyFrom(p, c[:], off)
}

// Start tells the tap what the guest takes unfinished.
func (n *Net) Start(features uint64) error {
	n.features = features
	if !n.tap {
		return nil
	}
	if err := unix.IoctlSetInt(n.cfg.FD, unix.TUNSETOFFLOAD, tapOffload(features)); err != nil {
		return fmt.Errorf("net: offloads %#x of the tap: %w", tapOffload(features), err)
	}
	return nil
}

// tapOffload is the offloads of a tap that fit the driver's features. Those
// that need others (5.1.3.1) count only with them.
func tapOffload(features uint64) int {
	if features&netGuestCsum == 0 {
		return 0
	}
	offload := unix.TUN_F_CSUM
	if features&netGuestTSO4 != 0 {
		offload |= unix.TUN_F_TSO4
	}
	if features&netGuestTSO6 != 0 {
		offload |= unix.TUN_F_TSO6
	}
	if features&netGuestECN != 0 && features&netGuestGSO != 0 {
		offload |= unix.TUN_F_TSO_ECN
	}
	return offload
}

func (n *Net) Serve(queue int, q *Queue) {
	if queue == netTx {
		n.transmit(q)
		return
	}
	rx := receiver{n: n, q: q, need: netMaxFrame, chain: makeChain(MaxQueueSize)}
	if mtu := int(n.cfg.MTU); mtu > 0 {
		rx.need = max(rx.need, netHeader+14+4+mtu)
	}
	if n.features&netGuestGSO != 0 {
		rx.need = netMaxPacket
	}
	rx.iov = make([]unix.Iovec, 0, netMaxIovecs)
	rx.held = make([]held, 0, MaxQueueSize)
	rx.run()
	q.untake(len(rx.held))
}

// transmit sends what the guest has (5.1.6.2).
func (n *Net) transmit(q *Queue) {
	for q.Wait() {
		for c := q.Next(); c != nil; c = q.Next() {
			if c.readLen < netHeader {
				q.Fail(errors.New("net: a packet without a header"))
				break
			}
			if c.readLen <= netMaxPacket && !n.down.Load() {
				vectoredNow(unix.SYS_WRITEV, n.cfg.FD, c.toRead(), 0, 0) // what is not taken is lost
			}
			q.Done(c, 0)
		}
	}
}

// receiver is what is in work in the receive queue: chains that were taken
// and wait for a packet.
type receiver struct {
	n     *Net
	q     *Queue
	need  int // bytes, for the largest packet that may come
	chain Chain
	held  []held
	iov   []unix.Iovec // of all that are held
	room  int          // bytes of all that are held
	slept bool         // since the last packet
}

type held struct {
	head   uint16
	iovecs int
	bytes  int
}

// run receives until Serve shall return.
func (r *receiver) run() {
	for r.q.running() {
		r.gather()
		switch {
		case !r.q.running():
		case len(r.held) == 0:
			r.q.Wait()
		default:
			r.packet()
		}
	}
}

// gather takes chains until the largest packet fits. Without
// VIRTIO_NET_F_MRG_RXBUF, one chain is all that a packet can have.
func (r *receiver) gather() {
	most := MaxQueueSize
	if r.n.features&netMrgRxbuf == 0 {
		most = 1
	}
	for r.room < r.need && len(r.held) < most && len(r.iov) <= netMaxIovecs-MaxQueueSize && r.q.available() {
		if err := r.hold(); err != nil {
			r.q.Fail(err)
			return
		}
	}
}

func (r *receiver) hold() error {
	c := &r.chain
	if err := r.q.next(c); err != nil {
		return err
	}
	if c.readLen > 0 || c.writeLen < netHeader {
		return errors.New("net: a receive buffer that is not for writing, or less than a header")
	}
	r.held = append(r.held, held{c.head, len(c.iov), int(c.writeLen)})
	r.iov = append(r.iov, c.iov...)
	r.room += int(c.writeLen)
	return nil
}

// packet receives one, or waits for one.
func (r *receiver) packet() {
	n, err := r.read()
	switch {
	case errors.Is(err, unix.EAGAIN):
		r.q.Poll(r.n.cfg.FD, -1)
		r.slept = true
	case err != nil || n < netHeader:
		r.q.Poll(-1, netRetry)
	case n > r.room || r.n.down.Load():
		// dropped: the guest has no place for it, or no link
	default:
		r.deliver(n)
	}
}

// read reads a packet to where the guest wants it, or, if that may be too
// small, to a buffer first. The length can be more than the room there is.
func (r *receiver) read() (int, error) {
	if r.room >= r.need {
		return vectoredNow(unix.SYS_READV, r.n.cfg.FD, r.iov, 0, 0)
	}
	if r.n.bounce == nil {
		r.n.bounce = make([]byte, netMaxPacket)
	}
	n, err := unix.Read(r.n.cfg.FD, r.n.bounce)
	if err == nil {
		scatter(r.iov, 0, r.n.bounce[:min(n, r.room)])
	}
	return n, err
}

// deliver gives the guest the chains that n bytes fill (5.1.6.4): all but the
// last are full. The driver hears at once of the first packet after a pause,
// which may be the only one, and of what comes right behind it by the batch.
func (r *receiver) deliver(n int) {
	chains, iovecs, left := 0, 0, n
	for left > 0 {
		h := &r.held[chains]
		r.q.done(h.head, uint32(min(left, h.bytes)))
		left -= h.bytes
		r.room -= h.bytes
		iovecs += h.iovecs
		chains++
	}
	var num [2]byte
	binary.LittleEndian.PutUint16(num[:], uint16(chains))
	scatter(r.iov, netHdrNumBuffers, num[:])
	if r.n.features&netGuestCsum == 0 {
		scatter(r.iov, netHdrFlags, []byte{0})
	}
	r.held = r.held[:copy(r.held, r.held[chains:])]
	r.iov = r.iov[:copy(r.iov, r.iov[iovecs:])]
	if r.slept || r.q.usedIdx-r.q.published >= batch {
		r.q.Publish()
		r.slept = false
	}
}
