<#
.SYNOPSIS
Installs the ICE client on Windows, enrols the machine, and starts the client at a user's logon.

.DESCRIPTION
docs/rollout.md says how to use it. Run it as SYSTEM or as an administrator. A second run changes nothing.

Exit status: 0 connected (-NoStart: installed), 1 failed, 2 wrong arguments, 3 refused: a person must act,
4 waits for an admin's approval, 5 not connected yet. After 4 and 5 the client goes on by itself.

.PARAMETER Gateway
The gateway's base URL.
.PARAMETER Package
What pip installs: a wheel, a URL, a name. PIP_* variables and pip.ini apply.
.PARAMETER KeyFile
The secret of the enrolment key, needed until the machine is enrolled.
.PARAMETER CaFile
Certificates (PEM) to trust besides the system's.
.PARAMETER User
The user of the ICE, for a key that lets the machine choose.
.PARAMETER RunAs
The account that runs the client, as DOMAIN\name. Default: who is logged on.
.PARAMETER Options
More options of `ice-client run`, with spaces between them.
.PARAMETER Python
Python 3.11 or newer, in a place where the client's account can run it.
.PARAMETER Wait
How many seconds to wait for the connection, at most 3600.
.PARAMETER RemoveKey
Delete the installed copy of the key once the ICE is connected.
.PARAMETER NoStart
Install, but neither enrol nor start: for an image.
#>
param(
    [string] $Gateway,
    [string] $Package,
    [string] $KeyFile,
    [string] $CaFile,
    [string] $User,
    [string] $RunAs,
    [string] $Options,
    [string] $Python = 'py.exe',
    [int] $Wait = 120,
    [switch] $RemoveKey,
    [switch] $NoStart
)
$ErrorActionPreference = 'Stop'
Set-StrictMode -Version 2

# A 32-bit agent (Intune) would see Program Files (x86).
$programFiles = if ($env:ProgramW6432) { $env:ProgramW6432 } else { $env:ProgramFiles }
$program = Join-Path $programFiles 'ice-client'
$client = Join-Path $program 'Scripts\ice-client.exe'
$settings = Join-Path $env:ProgramData 'ice-client'
$state = Join-Path $settings 'state'
$key = Join-Path $settings 'enrolment-key'
$ca = Join-Path $settings 'ca.pem'
$task = 'ice-client'
$script:changed = $false

function Stop-Install([int] $Status, [string] $Sentence) {
    [Console]::Error.WriteLine("install-ice: $Sentence")
    exit $Status
}

function Write-Change([string] $What) {
    $script:changed = $true
    Write-Output "install-ice: changed: $What"
}

# Starts a program; its output goes into files. PowerShell 5 would take a line on standard error for a failure.
function Start-Program([string] $File, [string[]] $Words) {
    $quoted = $Words | ForEach-Object { if ($_ -match '[\s"]') { '"' + ($_ -replace '"', '\"') + '"' } else { $_ } }
    $process = Start-Process -FilePath $File -ArgumentList $quoted -PassThru -WindowStyle Hidden `
        -RedirectStandardOutput $script:output -RedirectStandardError $script:errors
    $null = $process.Handle # otherwise PowerShell 5 has no ExitCode
    return $process
}

function Invoke-Program([string] $File, [string[]] $Words) {
    $process = Start-Program $File $Words
    $process.WaitForExit()
    return $process.ExitCode
}

function Get-LastLine {
    Get-Content $script:errors, $script:output | Where-Object { $_ } | Select-Object -Last 1
}

# The object of `ice-client status --json`, with the exit status of the command; the object is null after a failure.
function Get-ClientStatus {
    $code = Invoke-Program $client @('status', '--json', '--state-dir', $state)
    $text = Get-Content -Raw $script:output
    $report = if ($text) { $text | ConvertFrom-Json } else { $null }
    return @{ Code = $code; Report = $report }
}

function Test-Report($Status, [string] $Name) {
    return $null -ne $Status.Report -and $Status.Report.PSObject.Properties[$Name] -and $Status.Report.$Name
}

function Copy-IfDifferent([string] $From, [string] $To) {
    if ((Test-Path $To) -and (Get-FileHash $From).Hash -eq (Get-FileHash $To).Hash) { return }
    Copy-Item -LiteralPath $From -Destination $To -Force
    Write-Change $To
}

# Full access for SYSTEM and the administrators, $Rights for the client's account, nothing for others.
function Set-Access([string] $Path, [string] $Rights) {
    # Any user may have made the folder before, and an owner may change the list.
    $code = Invoke-Program 'icacls.exe' @($Path, '/setowner', '*S-1-5-32-544')
    if ($code -ne 0) { Stop-Install 1 "cannot become the owner of $Path" }
    $code = Invoke-Program 'icacls.exe' @($Path, '/inheritance:r', '/grant:r', '*S-1-5-18:(OI)(CI)F',
        '*S-1-5-32-544:(OI)(CI)F', "*${sid}:$Rights")
    if ($code -ne 0) { Stop-Install 1 "cannot set the access list of $Path" }
}

# --- arguments ---

# Gateway and options become part of a command: nothing that PowerShell or XML would interpret.
if ($Gateway -notmatch '\Ahttps?://[A-Za-z0-9._:/~%\[\]-]+\z') { Stop-Install 2 '-Gateway is missing, or not a URL that the task can be given' }
if ($Options -notmatch '\A[A-Za-z0-9._:/\\,=@+ -]*\z') { Stop-Install 2 '-Options may have letters, digits and . _ : / \ , = @ + - only' }
if (-not $Package -or $Package.StartsWith('-')) { Stop-Install 2 '-Package is missing' }
if ($Package -match '://[^/]*:[^/]*@') { Stop-Install 2 '-Package must not hold a password: use pip.ini or .netrc' }
if ($Wait -lt 0 -or $Wait -gt 3600) { Stop-Install 2 '-Wait takes seconds, at most 3600' }
foreach ($file in $KeyFile, $CaFile) {
    if ($file -and -not (Test-Path -LiteralPath $file -PathType Leaf)) { Stop-Install 2 "$file cannot be read" }
}
if ($Package -notmatch '://' -and $Package -match '\.whl\z|[\\/]' -and -not (Test-Path -LiteralPath $Package)) { Stop-Install 2 "$Package cannot be read" }

$work = Join-Path ([IO.Path]::GetTempPath()) ([Guid]::NewGuid())
$null = New-Item -ItemType Directory $work
$script:output = Join-Path $work 'output'
$script:errors = Join-Path $work 'errors'
try {
    if (-not $RunAs) { $RunAs = (Get-CimInstance Win32_ComputerSystem).UserName }
    if (-not $RunAs) { Stop-Install 1 'nobody is logged on: name an account with -RunAs' }
    try {
        $sid = ([Security.Principal.NTAccount] $RunAs).Translate([Security.Principal.SecurityIdentifier]).Value
    } catch { Stop-Install 1 "there is no account $RunAs" }

    # --- the program ---

    $stamp = $Package
    if (Test-Path -LiteralPath $Package -PathType Leaf) { $stamp += ' ' + (Get-FileHash $Package).Hash }
    $installed = Join-Path $program 'installed'
    if (-not (Test-Path $installed) -or (Get-Content -Raw $installed).Trim() -ne $stamp) {
        # Windows does not replace the files of a program that runs.
        Stop-ScheduledTask -TaskName $task -ErrorAction SilentlyContinue
        Get-Process ice-client -ErrorAction SilentlyContinue | Where-Object { $_.Path -eq $client } | Stop-Process -Force
        $check = 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))'
        $venvPython = Join-Path $program 'Scripts\python.exe'
        try { $code = Invoke-Program $Python @('-c', $check) } catch { $code = 1 }
        if ($code -ne 0) { Stop-Install 1 "$Python is not Python 3.11 or newer" }
        if (-not (Test-Path $venvPython) -and (Invoke-Program $Python @('-m', 'venv', '--clear', $program)) -ne 0) {
            Stop-Install 1 "cannot make ${program}: $(Get-LastLine)"
        }
        $pip = @('-m', 'pip', 'install', '--quiet', '--disable-pip-version-check', '--no-input', '--upgrade', $Package)
        if ((Invoke-Program $venvPython $pip) -ne 0) { Stop-Install 1 "pip: $(Get-LastLine)" }
        if ((Invoke-Program $client @('enrol', '--help')) -ne 0) { Stop-Install 1 'the package has no ice-client that can enrol' }
        Set-Content -LiteralPath $installed -Value $stamp
        Write-Change $program
    }

    # --- key and certificates ---

    $null = New-Item -ItemType Directory -Force $settings
    Set-Access $settings '(OI)(CI)RX'
    $null = New-Item -ItemType Directory -Force $state
    Set-Access $state '(OI)(CI)M'
    $token = Join-Path $state 'token'
    if (-not (Test-Path $token)) {
        if ($KeyFile) { Copy-IfDifferent $KeyFile $key }
        elseif (-not (Test-Path $key)) { Stop-Install 2 '-KeyFile is missing: this machine is not enrolled yet' }
    }

    # --- the task ---

    $words = "run --gateway $Gateway --enrolment-key-file '$key' --state-dir '$state'"
    if ($CaFile) {
        Copy-IfDifferent $CaFile $ca
        $words += " --ca-file '$ca'"
    }
    if ($Options) { $words += " $Options" }
    $xml = Get-Content -Raw (Join-Path $program 'share\ice-client\ice-client.xml')
    $xml = $xml.Replace('>USER<', ">$sid<").Replace("(Join-Path `$env:USERPROFILE 'ice\Scripts\ice-client.exe')", "'$client'")
    $xml = $xml.Replace('run --gateway https://gateway.example:8440', $words)
    $definition = Join-Path $settings 'task.xml'
    $same = (Test-Path $definition) -and (Get-Content -Raw $definition) -eq $xml
    if (-not $same -or -not (Get-ScheduledTask -TaskName $task -ErrorAction SilentlyContinue)) {
        Stop-ScheduledTask -TaskName $task -ErrorAction SilentlyContinue
        $null = Register-ScheduledTask -TaskName $task -Xml $xml -Force
        [IO.File]::WriteAllText($definition, $xml)
        Write-Change "the task $task"
    }
    if ($NoStart) {
        Write-Output 'install-ice: installed; the client enrols at its first start'
        exit 0
    }

    # --- enrol, start, wait ---

    $deadline = (Get-Date).AddSeconds($Wait)
    if (-not (Test-Path $token) -and -not (Test-Report (Get-ClientStatus) 'running')) {
        # Not by the task: only `enrol` can be given a user, which the client then remembers.
        $enrol = @('enrol', '--gateway', $Gateway, '--enrolment-key-file', $key, '--state-dir', $state)
        if ($User) { $enrol += '--user', $User }
        if ($CaFile) { $enrol += '--ca-file', $ca }
        if (" $Options " -match ' --insecure ') { $enrol += '--insecure' }
        $statusOutput, $script:output = $script:output, (Join-Path $work 'enrol-output')
        $statusErrors, $script:errors = $script:errors, (Join-Path $work 'enrol-errors')
        $process = Start-Program $client $enrol
        $enrolOutput, $script:output = $script:output, $statusOutput
        $enrolErrors, $script:errors = $script:errors, $statusErrors
        $ended = $false
        while (-not ($ended = $process.WaitForExit(1000))) {
            if ((Get-Date) -ge $deadline -or (Test-Report (Get-ClientStatus) 'enrolment')) { break }
        }
        if (-not $ended) {
            $process.Kill()
            $process.WaitForExit()
        } elseif ($process.ExitCode -ne 0) {
            $status = if ($process.ExitCode -eq 3) { 3 } else { 1 }
            $script:output, $script:errors = $enrolOutput, $enrolErrors
            Stop-Install $status "not enrolled: $(Get-LastLine)"
        } else {
            Write-Change 'enrolled this machine'
        }
    }

    Start-ScheduledTask -TaskName $task # does nothing to one that runs

    $refused = 0
    while ($true) {
        $found = Get-ClientStatus
        if ($found.Code -eq 0) { break }
        # A client that has just been started has not yet replaced what the last one wrote.
        $refused = if ($found.Code -eq 3) { $refused + 1 } else { 0 }
        if ($refused -ge 5) {
            $todo = if (Test-Report $found 'todo') { $found.Report.todo } else { Get-LastLine }
            Stop-Install 3 "refused: $todo"
        }
        if (Test-Report $found 'enrolment') { Stop-Install 4 'waits for an admin to approve this machine' }
        if ((Get-Date) -ge $deadline) {
            $why = if (Test-Report $found 'sentence') { ": $($found.Report.sentence)" } else { '' }
            Stop-Install 5 "not connected after $Wait s$why; the client goes on trying while $RunAs is logged on"
        }
        Start-Sleep -Seconds 2
    }
    if ($RemoveKey -and (Test-Path $key)) {
        Remove-Item -LiteralPath $key -Force
        Write-Change 'deleted the enrolment key'
    }
    Write-Output "install-ice: connected$(if (-not $script:changed) { '; nothing was changed' })"
    exit 0
} catch {
    Stop-Install 1 $_.Exception.Message
} finally {
    Remove-Item -Recurse -Force $work -ErrorAction SilentlyContinue
}
