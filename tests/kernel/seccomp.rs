//! A planted bug at the border of the kernel: syncs of data that succeed and do nothing.

use libc::{
    BPF_ABS, BPF_JEQ, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W, SECCOMP_MODE_FILTER,
    SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO, sock_filter, sock_fprog,
};

/// From here on, in this thread and those it starts, fdatasync returns 0 at once, and writes that
/// are to be durable by themselves are refused, so that they are written and "synced".
pub(crate) fn skip_syncs() {
    let answers = [(libc::SYS_fdatasync, 0), (libc::SYS_pwritev2, libc::EOPNOTSUPP as u32)];
    let op = |code: u32, k: u32, skip: u8| sock_filter { code: code as u16, jt: 0, jf: skip, k };
    // The number of the call is the first word that a filter sees.
    let mut filter = vec![op(BPF_LD | BPF_W | BPF_ABS, 0, 0)];
    for (call, errno) in answers {
        filter.push(op(BPF_JMP | BPF_JEQ | BPF_K, call as u32, 1));
        filter.push(op(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | errno, 0));
    }
    filter.push(op(BPF_RET | BPF_K, SECCOMP_RET_ALLOW, 0));
    let program = sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: `program` describes `filter`, which lives until both calls have returned; the kernel
    // copies it.
    let installed = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
            && libc::prctl(libc::PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0
    };
    assert!(installed, "seccomp: {}", std::io::Error::last_os_error());
}
