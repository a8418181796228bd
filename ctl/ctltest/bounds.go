package ctltest

import (
	"context"

	"vmfs/ctl"
)

// Bounds is what SetBounds said, and no cgroup before that.
func (h *Host) Bounds(_ context.Context, id uint32) (ctl.Bounds, error) {
	h.Lock()
	defer h.Unlock()
	if b, ok := h.bounds[id]; ok {
		return b, nil
	}
	return ctl.Bounds{Text: "none: this is a test"}, nil
}

// SetBounds says what limits a guest process has.
func (h *Host) SetBounds(id uint32, b ctl.Bounds) {
	h.Lock()
	defer h.Unlock()
	if h.bounds == nil {
		h.bounds = map[uint32]ctl.Bounds{}
	}
	h.bounds[id] = b
}
