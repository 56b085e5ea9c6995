//go:build amd64

package e2e

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/twillnet/twill/internal/lab/testkit"
)

// stepClock moves the wall clock by d for one process; it may do so once. The
// process can notice it only from the clock.
//
// No namespace has a wall clock of its own (time_namespaces(7)). But Go programs
// get the time from the vDSO, of which a process gets a copy of its own where a
// debugger writes to it. Here its function is replaced by one that makes the system
// call instead, and adds d to the result for CLOCK_REALTIME.
func stepClock(t testing.TB, pid int, d time.Duration) {
	t.Helper()
	if d%time.Second != 0 {
		t.Fatalf("step the clock by %s: want whole seconds", d)
	}
	code := []byte{
		0xb8, 228, 0, 0, 0, // mov $SYS_clock_gettime, %eax; clock and result are where they were
		0x0f, 0x05, //         syscall
		0x85, 0xc0, //         test %eax, %eax
		0x75, 17, //           jnz ret
		0x85, 0xff, //         test %edi, %edi; CLOCK_REALTIME is 0
		0x75, 13, //           jnz ret
		0x48, 0xb9, //         movabs $seconds, %rcx
	}
	code = binary.LittleEndian.AppendUint64(code, uint64(d/time.Second))
	code = append(code,
		0x48, 0x01, 0x0e, // add %rcx, (%rsi); tv_sec
		0xc3, //             ret
	)
	mem, err := os.OpenFile(fmt.Sprintf("/proc/%d/mem", pid), os.O_RDWR, 0)
	testkit.Must(t, err)
	defer mem.Close()
	begin, text := vdso(t, pid, mem)
	at, size := clockGettime(t, text)
	if size < len(code) {
		t.Fatalf("the vDSO's clock_gettime has %d bytes, want room for %d", size, len(code))
	}
	// No thread may be executing what is replaced.
	testkit.Eventually(t, fmt.Sprintf("process %d is stopped outside the vDSO", pid), func() bool {
		testkit.Must(t, syscall.Kill(pid, syscall.SIGSTOP))
		testkit.Eventually(t, fmt.Sprintf("process %d is stopped", pid), func() bool { return stands(t, pid) })
		if isBetween(t, pid, begin, begin+uint64(len(text))) {
			testkit.Must(t, syscall.Kill(pid, syscall.SIGCONT))
			return false
		}
		return true
	})
	_, err = mem.WriteAt(code, int64(begin)+at)
	testkit.Must(t, err, syscall.Kill(pid, syscall.SIGCONT))
}

// vdso returns where the vDSO of a process begins, and what is in it.
func vdso(t testing.TB, pid int, mem *os.File) (begin uint64, text []byte) {
	t.Helper()
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	testkit.Must(t, err)
	for line := range strings.Lines(string(maps)) {
		if strings.HasSuffix(line, "[vdso]\n") {
			var end uint64
			_, err := fmt.Sscanf(line, "%x-%x ", &begin, &end)
			testkit.Must(t, err)
			text = make([]byte, end-begin)
			_, err = mem.ReadAt(text, int64(begin))
			testkit.Must(t, err)
			return begin, text
		}
	}
	t.Fatalf("process %d has no vDSO:\n%s", pid, maps)
	return 0, nil
}

// clockGettime returns where in the vDSO its clock_gettime is, and its size.
func clockGettime(t testing.TB, text []byte) (at int64, size int) {
	t.Helper()
	file, err := elf.NewFile(bytes.NewReader(text))
	testkit.Must(t, err)
	symbols, err := file.DynamicSymbols()
	testkit.Must(t, err)
	for _, s := range symbols {
		if s.Name == "__vdso_clock_gettime" {
			return int64(s.Value), int(s.Size)
		}
	}
	t.Fatal("the vDSO has no __vdso_clock_gettime")
	return 0, 0
}

// threads returns the contents of the files of that name for the threads of a process.
func threads(t testing.TB, pid int, name string) (texts []string) {
	t.Helper()
	paths, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/%s", pid, name))
	testkit.Must(t, err)
	for _, path := range paths {
		if text, err := os.ReadFile(path); err == nil { // or else the thread has ended
			texts = append(texts, string(text))
		}
	}
	if len(texts) == 0 {
		t.Fatalf("process %d has ended", pid)
	}
	return texts
}

// stands reports whether all threads of a process are stopped.
func stands(t testing.TB, pid int) bool {
	t.Helper()
	return !slices.ContainsFunc(threads(t, pid, "stat"), func(stat string) bool {
		// proc_pid_stat(5): the state follows the name, which is in parentheses.
		return stat[strings.LastIndexByte(stat, ')')+2] != 'T'
	})
}

// isBetween reports whether a thread of a stopped process is about to execute
// something between two addresses.
func isBetween(t testing.TB, pid int, begin, end uint64) bool {
	t.Helper()
	return slices.ContainsFunc(threads(t, pid, "syscall"), func(call string) bool {
		// proc_pid_syscall(5): the last number is the program counter.
		fields := strings.Fields(call)
		pc, err := strconv.ParseUint(fields[len(fields)-1], 0, 64)
		testkit.Must(t, err)
		return begin <= pc && pc < end
	})
}
