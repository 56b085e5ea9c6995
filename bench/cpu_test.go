package bench

import (
	"os"
	"testing"
	"time"
)

func TestMeterSeesWorkOfThisProcess(t *testing.T) {
	m, err := startMeter([]int{os.Getpid()})
	if err != nil {
		t.Fatal(err)
	}
	const work = 200 * time.Millisecond
	for end := time.Now().Add(work); time.Now().Before(end); {
	}
	u, err := m.stop()
	if err != nil {
		t.Fatal(err)
	}
	// A busy machine may have provided less than requested.
	if u.daemons < work/8 || u.machine < u.daemons-20*time.Millisecond {
		t.Errorf("of %v: the process %v, the machine %v", u.elapsed, u.daemons, u.machine)
	}
	if u.peakRSS < 1<<20 || u.peakRSS > 1<<32 {
		t.Errorf("peak memory of a Go program is %d bytes", u.peakRSS)
	}
	if _, err := startMeter([]int{1 << 30}); err == nil {
		t.Error("no error for a process that is not there")
	}
}

func TestMachineTimeLeavesOutIdleWaitingAndGuests(t *testing.T) {
	got, err := parseMachineCPU("cpu  100 20 3 40000 5000 6 7 80 90 10")
	want := machineTime{used: 1360 * time.Millisecond, stolen: 800 * time.Millisecond}
	if err != nil || got != want {
		t.Errorf("got %+v, %v; want %+v", got, err, want)
	}
	for _, line := range []string{"", "cpu 1 2 3", "cpu0 1 2 3 4 5 6 7 8 9 10", "cpu 1 2 3 4 5 x 7 8 9 10"} {
		if _, err := parseMachineCPU(line); err == nil {
			t.Errorf("%q was read", line)
		}
	}
}

func TestPeakMemoryIsReadFromStatus(t *testing.T) {
	got, err := parsePeakRSS([]byte("Name:\tVmHWM:\nVmPeak:\t  999 kB\nVmHWM:\t   12345 kB\nVmRSS:\t 1 kB\n"))
	if err != nil || got != 12345<<10 {
		t.Errorf("got %d, %v", got, err)
	}
	for _, status := range []string{"", "Name:\tx\nVmRSS:\t1 kB\n", "\nVmHWM:\t12", "\nVmHWM:\tx kB"} {
		if _, err := parsePeakRSS([]byte(status)); err == nil {
			t.Errorf("%q was read", status)
		}
	}
}
