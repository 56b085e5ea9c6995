package main

import (
	"bytes"
	"debug/elf"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
)

// link checks that each program and library of the trees, stacked on each other, finds
// the libraries that it names, and is for the architecture.
func linked(machine elf.Machine, layers ...tree) error {
	all := tree{}
	for _, t := range layers {
		maps.Copy(all, t)
	}
	libraries := map[string]bool{}
	for name := range all {
		libraries[path.Base(name)] = true
	}
	for _, name := range slices.Sorted(maps.Keys(all)) {
		data := all[name].data
		if !bytes.HasPrefix(data, []byte(elf.ELFMAG)) {
			continue
		}
		if err := linkedFile(machine, data, libraries); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

func linkedFile(machine elf.Machine, data []byte, libraries map[string]bool) error {
	f, err := elf.NewFile(bytes.NewReader(data))
	if err != nil {
		return err
	}
	if f.Machine != machine {
		return fmt.Errorf("is for %s, want %s", f.Machine, machine)
	}
	needed, err := f.ImportedLibraries()
	if err != nil {
		return err
	}
	if s := f.Section(".interp"); s != nil {
		interpreter, err := s.Data()
		if err != nil {
			return err
		}
		needed = append(needed, path.Base(strings.TrimRight(string(interpreter), "\x00")))
	}
	for _, library := range needed {
		if !libraries[library] {
			return fmt.Errorf("needs %s, of which there is no package", library)
		}
	}
	return nil
}
