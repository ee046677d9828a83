//! Takes the program at a TAP away, as somebody who means ill, or an experiment, would.

use super::Ns;

/// `BPF_PROG_DETACH`, `BPF_PROG_GET_FD_BY_ID`, `BPF_PROG_QUERY` and `BPF_TCX_INGRESS` (`linux/bpf.h`).
const DETACH: libc::c_long = 9;
const BY_NUMBER: libc::c_long = 13;
const QUERY: libc::c_long = 16;
const INGRESS: u32 = 46;

/// How many programs frames from the guest passed until now; from now on they pass none.
pub fn detach(ns: &Ns) -> usize {
    ns.run(|| {
        // SAFETY: the call reads a text that ends.
        let link = unsafe { libc::if_nametoindex(c"tap0".as_ptr()) };
        let mut numbers = [0_u32; 8];
        let mut query = [0_u32; 32];
        (query[0], query[1], query[6]) = (link, INGRESS, 8);
        let address = numbers.as_mut_ptr() as u64;
        (query[4], query[5]) = (address as u32, (address >> 32) as u32);
        if bpf(QUERY, &mut query) < 0 {
            return 0;
        }
        let count = query[6] as usize;
        for number in &numbers[..count] {
            let mut ask = [0_u32; 32];
            ask[0] = *number;
            let program = bpf(BY_NUMBER, &mut ask);
            assert!(program >= 0, "{}", std::io::Error::last_os_error());
            let mut take = [0_u32; 32];
            (take[0], take[1], take[2]) = (link, program as u32, INGRESS);
            assert_eq!(bpf(DETACH, &mut take), 0, "{}", std::io::Error::last_os_error());
            // SAFETY: it was opened here, and nobody else has it.
            unsafe { libc::close(program as i32) };
        }
        count
    })
}

fn bpf(command: libc::c_long, request: &mut [u32; 32]) -> libc::c_long {
    // SAFETY: the request and what it names live until the call returns, and are as long as it says.
    unsafe { libc::syscall(libc::SYS_bpf, command, request.as_mut_ptr(), size_of_val(request)) }
}
