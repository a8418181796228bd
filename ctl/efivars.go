package ctl

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// A UEFI firmware keeps its variables, such as what to boot, in a file of the
// machine's own: STATE/vm/NAME/efivars.HASH, the hash being of the path of the
// firmware, since one firmware's variables make no sense to another. It
// begins as the template that belongs to the firmware, at the first start with
// it, which is the end of what another one has kept.

const efivarsPrefix = "efivars."

// maxEfivars bounds a template, in bytes: all the flash memory of a machine.
const maxEfivars = 8 << 20

// ownVars puts the machine's own variables in the place of the template that
// came with its firmware.
func (vm *VM) ownVars(d *definition, spec *Launch) error {
	if spec.Vars == nil {
		return nil
	}
	hash := sha256.Sum256([]byte(d.get("firmware")))
	name := efivarsPrefix + hex.EncodeToString(hash[:8])
	f, err := openVars(vm.dir(), name, spec.Vars)
	if err != nil {
		return err
	}
	spec.Vars.Close()
	spec.Vars = f
	return nil
}

// openVars opens dir/name for writing, and makes it of the template if it is
// not there or of another size, as after an exchange of the firmware's files.
func openVars(dir, name string, template *os.File) (*os.File, error) {
	st, err := template.Stat()
	if err != nil {
		return nil, Errorf(Errno(err), "firmware: the template of its variables: %v", err)
	}
	path := filepath.Join(dir, name)
	have, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && have.Size() != st.Size() {
		err = makeVars(dir, name, template)
	}
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_RDWR|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return nil, saveError("firmware", err)
	}
	return f, nil
}

// makeVars copies the template, and removes the variables of other firmware.
func makeVars(dir, name string, template *os.File) error {
	text, err := io.ReadAll(io.NewSectionReader(template, 0, maxEfivars+1))
	if err != nil {
		return Errorf(Errno(err), "firmware: the template of its variables: %v", err)
	}
	if len(text) > maxEfivars {
		return Errorf(syscall.EINVAL, "firmware: a template of variables of more than %d MiB", maxEfivars>>20)
	}
	if err := replaceFile(dir, name, string(text)); err != nil {
		return saveError("firmware", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return saveError("firmware", err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), efivarsPrefix) && e.Name() != name {
			if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
				return saveError("firmware", err)
			}
		}
	}
	return saveError("firmware", syncDir(dir))
}
