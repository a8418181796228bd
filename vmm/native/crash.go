package native

import (
	"fmt"
	"io"

	"vmfs/vmm/kvm"
)

// crash is an end that no guest asks for: what happened, on which CPU, and
// where that was.
type crash struct {
	What  string
	CPU   int
	Known bool   // whether the rest is: some processors forget it
	RIP   uint64 // as the guest counts
	Code  []byte // what is there; may be empty
}

// String is one line for the exit record.
func (c crash) String() string {
	s := fmt.Sprintf("%s on CPU %d", c.What, c.CPU)
	switch {
	case !c.Known:
		return s
	case len(c.Code) == 0:
		return fmt.Sprintf("%s at %#x", s, c.RIP)
	}
	return fmt.Sprintf("%s at %#x: code % x", s, c.RIP, c.Code)
}

// diagnose says why a CPU cannot go on; locate says where.
func diagnose(v *kvm.VCPU) crash {
	c := crash{What: v.Reason().String()}
	switch v.Reason() {
	case kvm.ExitInternalError:
		e := v.InternalError()
		c.What = "internal error: " + e.String()
		for _, d := range e.Data {
			c.What += fmt.Sprintf(" %#x", d)
		}
	case kvm.ExitFailEntry:
		c.What = fmt.Sprintf("failed entry: hardware reason %#x", v.FailEntry())
	case kvm.ExitSystemEvent:
		c.What = fmt.Sprintf("system event %d", v.SystemEvent())
	}
	return c
}

// longestInstruction is what an instruction of the x86 has at most, in bytes.
const longestInstruction = 15

// locate adds where v stands, and the code there if memory has it.
func (c *crash) locate(v *kvm.VCPU, memory io.ReaderAt) {
	regs, err := v.Regs()
	if err != nil {
		return
	}
	sregs, err := v.Sregs()
	if err != nil {
		return
	}
	// AMD's processors lose the state of a CPU in a triple fault, and KVM
	// resets it then.
	if regs.RIP == 0xfff0 && sregs.CS.Base == 0xffff0000 {
		return
	}
	c.Known, c.RIP = true, regs.RIP
	at, ok := v.Translate(sregs.CS.Base + regs.RIP)
	if !ok {
		return
	}
	const page = 4096
	code := make([]byte, min(longestInstruction, page-int(at%page)))
	if _, err := memory.ReadAt(code, int64(at)); err == nil {
		c.Code = code
	}
}
